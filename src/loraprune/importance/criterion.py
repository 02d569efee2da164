"""The protocol of a criterion, and checks of objects that implement it."""

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
    """Scores the groups of a model during training, or on the backward passes of calibration data.

    Any class with these attributes and methods is a criterion: pass an instance, as in
    ``PruningConfig(criterion=MyCriterion())``. Every run works on its own copy.

    Attributes:
        every_step: whether scores change with the data and are averaged over the steps; otherwise they are read once
            per cut.
        comparable: whether scores of different kinds of groups have the same unit, an estimated change of the loss.
    """

    comparable: bool
    every_step: bool

    def attach(self, model: nn.Module, structure: Structure) -> None:
        """Start gathering evidence."""

    def scores(self, plan: Plan) -> Scores | None:
        """Score the groups that ``plan`` keeps, from the evidence since the last call; None if there is none.

        Called after the backward passes of a step and before the optimizer's update.
        """

    def detach(self) -> None:
        """Restore the model to its state before :meth:`attach`."""


@runtime_checkable
class LearnedCriterion(Criterion, Protocol):
    """A criterion that learns gates from the first step until its only cut, and keeps them on the model."""

    def begin(self, steps: int, ratio: float) -> None:
        """Start learning, after :meth:`attach`; ``steps`` optimizer steps remain until ``ratio`` is removed."""

    def learn(self, usable: bool = True) -> None:
        """Learn from the backward passes of a step, unless they are unusable."""

    def gates(self) -> dict[str, torch.Tensor]:
        """Return the evaluation-mode factor of each group, by dimension, for the dimensions that have gates."""

    def state(self) -> dict[str, torch.Tensor]:
        """Return everything learned, for a checkpoint."""

    def restore(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Continue from a checkpoint, after :meth:`begin`."""


def check_protocol(criterion: object) -> None:
    """Check that a user's own object is a criterion.

    Raises:
        ValueError: the object is a class rather than an instance, or lacks an attribute; the message names it.
    """
    if isinstance(criterion, type):
        raise ValueError(
            f"The criterion is the class {criterion.__name__}. Pass an instance of it: {criterion.__name__}(...)."
        )
    name = type(criterion).__name__
    missing = [method for method in ("attach", "scores", "detach") if not callable(getattr(criterion, method, None))]
    missing += [flag for flag in ("comparable", "every_step") if not isinstance(getattr(criterion, flag, None), bool)]
    if missing:
        raise ValueError(
            f"The criterion, an object of {name}, lacks {', '.join(missing)}. A criterion has the "
            "methods attach(model, structure), scores(plan) and detach(), and the flags comparable and every_step."
        )


def check_scores(name: str, structure: Structure, plan: Plan, scores: Mapping[str, object]) -> None:
    """Check that a criterion returned one score for every group that a plan keeps.

    Raises:
        ValueError: it did not.
    """
    odd = set(scores) ^ {dimension.name for dimension in structure}
    if odd:
        first = sorted(odd)[0]
        what = f"no scores for {first}" if first not in scores else f"scores for {first!r}, which is not a dimension"
        raise ValueError(f"The criterion {name} returned {what}.")
    for dimension in structure:
        values, count = scores[dimension.name], plan.count(dimension.name)
        if not isinstance(values, torch.Tensor) or tuple(values.shape) != (count,):
            shape = tuple(values.shape) if isinstance(values, torch.Tensor) else type(values).__name__
            raise ValueError(
                f"The criterion {name} returned scores of shape {shape} for {dimension.name}, which has {count} groups "
                f"now. Return a tensor of shape ({count},)."
            )
