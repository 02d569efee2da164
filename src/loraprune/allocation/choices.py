"""Groups of a dimension that stay at a given width, and the importance that the others take along."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from loraprune.importance.moving_average import Scores
from loraprune.structure.dimensions import PrunableDimension, Structure


@dataclass(frozen=True)
class Choice:
    """Dimensions that are decided together, and the importance of their groups in this choice.

    Attributes:
        dimensions: one dimension, or several that are tied and keep the same groups.
        scores: scores of the current groups, summed over the dimensions, shape ``(strata, groups per stratum)``.
    """

    dimensions: tuple[PrunableDimension, ...]
    scores: torch.Tensor

    @property
    def dimension(self) -> PrunableDimension:
        """First of the dimensions; the others are equivalent here."""
        return self.dimensions[0]

    @property
    def parameters_per_step(self) -> int:
        """Number of parameters removed when every stratum of every dimension loses one group."""
        return sum(dimension.parameters_per_group * dimension.strata for dimension in self.dimensions)

    def kept(self, count: int) -> list[int]:
        """Positions that stay when each stratum keeps ``count`` groups, ascending; ties keep the first."""
        strata, now = self.scores.shape
        if self.dimension.alibi:
            step = now // count
            return list(range(step - 1, now, step))
        order = torch.sort(self.scores, dim=1, descending=True, stable=True).indices[:, :count]
        order = order + torch.arange(strata, device=order.device)[:, None] * now
        return sorted(order.flatten().tolist())

    def lost(self, count: int) -> float:
        """Importance of the groups that are removed in that case."""
        values = self.scores.flatten().double()
        return float(values.sum() - values[self.kept(count)].sum())

    def losses(self) -> list[float]:
        """:meth:`lost` for 0, 1, ... up to all groups of a stratum; infinite for 0."""
        now = self.scores.shape[1]
        if self.dimension.alibi:
            return [
                float("inf"),
                *(self.lost(count) if now % count == 0 else float("inf") for count in range(1, now + 1)),
            ]
        ascending = torch.sort(self.scores.double(), dim=1).values
        cumulated = ascending.cumsum(1).sum(0).tolist()
        return [float("inf"), *(cumulated[now - count - 1] if count < now else 0.0 for count in range(1, now + 1))]


def choices(structure: Structure, scores: Scores) -> list[Choice]:
    """Return the choices in a model, in the order of the forward pass; protected layers have none."""
    together: dict[str, list[PrunableDimension]] = {}
    for dimension in structure.open:
        together.setdefault(dimension.tied or dimension.name, []).append(dimension)
    return [
        Choice(
            tuple(dimensions),
            torch.stack([scores[dimension.name] for dimension in dimensions]).sum(0).view(dimensions[0].strata, -1),
        )
        for dimensions in together.values()
    ]


def positions_of(choice: Choice, positions: Sequence[int]) -> dict[str, Sequence[int]]:
    """Return the same positions for every dimension of a choice, by name."""
    return {dimension.name: positions for dimension in choice.dimensions}
