"""Baselines that look at nothing: random importance, and importance by place."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING

import torch

from loraprune.importance.moving_average import Scores

if TYPE_CHECKING:
    from torch import nn

    from loraprune.structure.dimensions import Structure
    from loraprune.structure.plan import Plan


class RandomCriterion:
    """One uniform random score a group, the same whenever it is asked for.

    Args:
        seed: two criteria with the same seed give the same scores.
    """

    comparable = False
    every_step = False

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed
        self._structure: Structure | None = None

    def attach(self, model: nn.Module, structure: Structure) -> None:
        """Remember the structure."""
        self._structure = structure

    def scores(self, plan: Plan) -> Scores | None:
        """Scores of the groups that are left; a group keeps its score over all cuts."""
        assert self._structure is not None
        scores: Scores = {}
        for dimension in self._structure:
            generator = torch.Generator().manual_seed(self.seed ^ zlib.crc32(dimension.name.encode()))
            values = torch.rand(dimension.num_groups, generator=generator)
            scores[dimension.name] = values[list(plan.kept[dimension.name])]
        return scores

    def detach(self) -> None:
        """Forget the structure."""
        self._structure = None


# Importance by place: the first blocks stay and the last ones go, whatever they compute.


class PositionCriterion:
    """Scores that fall with a block's number, so that the first n blocks stay: for whole blocks alone.

    Source: LLM-Pruner (arXiv 2305.11627), whose layer-wise mode keeps the first n layers.
    """

    comparable = False
    every_step = False

    def __init__(self) -> None:
        self._structure: Structure | None = None

    def attach(self, model: nn.Module, structure: Structure) -> None:
        """Remember the structure."""
        self._structure = structure

    def scores(self, plan: Plan) -> Scores | None:
        """The number of blocks after each one, and itself."""
        assert self._structure is not None
        return {
            dimension.name: torch.tensor(
                [dimension.num_groups - group for group in plan.kept[dimension.name]], dtype=torch.float32
            )
            for dimension in self._structure
        }

    def detach(self) -> None:
        """Forget the structure."""
        self._structure = None
