"""What a criterion is: the protocol, and what is checked of an object that is to fulfil it."""

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
    """Scores the groups of a model while it is trained, or on the backward passes of calibration data.

    Any class that has these attributes and methods is a criterion: pass an object of it, as in
    ``PruningConfig(criterion=MyCriterion())``. Every run works with a copy of its own.

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


def check_protocol(criterion: object) -> None:
    """Make sure that an object of a user's own is a criterion.

    Raises:
        ValueError: it is a class and no object of it, or lacks something; the message says what.
    """
    if isinstance(criterion, type):
        raise ValueError(
            f"The criterion is the class {criterion.__name__}; give an object of it, {criterion.__name__}(...)."
        )
    name = type(criterion).__name__
    missing = [method for method in ("attach", "scores", "detach") if not callable(getattr(criterion, method, None))]
    missing += [flag for flag in ("comparable", "every_step") if not isinstance(getattr(criterion, flag, None), bool)]
    if missing:
        raise ValueError(
            f"An object of {name} was given as the criterion, and lacks {', '.join(missing)}. A criterion has the "
            "methods attach(model, structure), scores(plan) and detach(), and the flags comparable and every_step."
        )


def check_scores(name: str, structure: Structure, plan: Plan, scores: Mapping[str, object]) -> None:
    """Make sure that a criterion scored every group that a plan keeps, once.

    Raises:
        ValueError: it did not.
    """
    odd = set(scores) ^ {dimension.name for dimension in structure}
    if odd:
        first = sorted(odd)[0]
        what = f"no scores of {first}" if first not in scores else f"scores of {first!r}, which is no dimension"
        raise ValueError(f"The criterion {name} gave {what}.")
    for dimension in structure:
        values, count = scores[dimension.name], plan.count(dimension.name)
        if not isinstance(values, torch.Tensor) or tuple(values.shape) != (count,):
            shape = tuple(values.shape) if isinstance(values, torch.Tensor) else type(values).__name__
            raise ValueError(
                f"The criterion {name} gave scores of shape {shape} for {dimension.name}; it has {count} groups now, "
                f"which need a tensor of shape ({count},)."
            )
