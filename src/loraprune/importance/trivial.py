"""Random importance: the baseline that every criterion must beat."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING

import torch

from loraprune.importance.moving_average import Scores

if TYPE_CHECKING:
    from torch import nn

    from loraprune.structure.dimensions import Structure
    from loraprune.structure.plan import Plan


class Random:
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
