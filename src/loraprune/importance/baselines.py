"""Baselines that read neither data nor weights: random importance, and importance by position."""

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
    """One uniform random score per group, the same at every call.

    Args:
        seed: two criteria with the same seed return the same scores.
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
        """Return the scores of the remaining groups; a group keeps its score through all cuts."""
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


# Importance by position: the first blocks stay and the last ones are removed, whatever they compute.


class PositionCriterion:
    """Scores that fall with a block's number, so the first n blocks stay; for whole blocks only.

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
        """Return one score per block: the number of blocks from that block to the last one."""
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
