"""What every criterion is: evidence in, one importance score a group out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import torch

from loraprune.importance.moving_average import Scores

if TYPE_CHECKING:
    from torch import nn

    from loraprune.structure.dimensions import Structure
    from loraprune.structure.plan import Plan


class Criterion(Protocol):
    """Scores the groups of a model while it is trained.

    Attributes:
        every_step: scores change with the data, and are averaged over the steps; otherwise they are read once,
            at each cut.
        comparable: scores of different kinds of groups have the same unit, an estimated change of the loss.
    """

    comparable: bool
    every_step: bool

    def attach(self, model: nn.Module, structure: Structure) -> None:
        """Start to gather evidence."""

    def scores(self, plan: Plan) -> Scores | None:
        """Scores of the groups that ``plan`` keeps, from the evidence since the last call; None when there is none.

        Called after the backward passes of a step and before the optimizer's update.
        """

    def detach(self) -> None:
        """Leave the model as it was."""


@runtime_checkable
class LearnedCriterion(Criterion, Protocol):
    """A criterion that learns gates from the first step to the one cut that is made, and holds them on the model."""

    def begin(self, steps: int, ratio: float) -> None:
        """Start to learn, after :meth:`attach`: so many optimizer steps until the cut, so much to remove."""

    def learn(self, usable: bool = True) -> None:
        """Learn from the backward passes of a step; nothing where they are not usable."""

    def gates(self) -> dict[str, torch.Tensor]:
        """What each group is multiplied with outside of training, by dimension; of those that have gates."""

    def state(self) -> dict[str, torch.Tensor]:
        """Everything learnt, for a checkpoint."""

    def restore(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Go on from a checkpoint, after :meth:`begin`."""
