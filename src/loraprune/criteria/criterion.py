"""What every criterion is: evidence in, one importance score a group out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from loraprune.averaging import Scores

if TYPE_CHECKING:
    from torch import nn

    from loraprune.plan import Plan
    from loraprune.structure import Structure


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
