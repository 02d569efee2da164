"""What a criterion is, what it can be told, and which kinds of dimensions it can score."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import torch

from loraprune.importance.compresso import CompressoOptions
from loraprune.importance.evidence.learned_gates import check_gateable
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


# What a criterion can be told, and which criterion listens to what.

REDUCED = ("taylor", "lora", "magnitude")
"""Criteria that look at the weights of every layer of a group, and add up (or otherwise reduce) what the layers say."""


@dataclass(frozen=True, kw_only=True)
class CriterionOptions:
    """Which criterion, and how it scores.

    Attributes:
        name: one of :data:`loraprune.importance.registry.CRITERIA`.
        lora_form: of ``lora``, see :class:`loraprune.importance.lora.LoraGuided`.
        taylor_form: of ``taylor``, see :mod:`loraprune.importance.taylor`.
        group_reduction: of ``taylor``, ``lora`` and ``magnitude``: how the scores that the layers of a group give it
            become one, see :func:`loraprune.importance.reductions.reduced`.
        offload_grads: of ``taylor``: keep accumulated gradients in the machine's memory.
        seed: of ``random`` and ``compresso``.
        compresso: of ``compresso``.
        own: a criterion of the user's own, in place of one of ours.
    """

    name: str = "fisher"
    lora_form: str = "squared"
    taylor_form: str = "squared"
    group_reduction: str = "sum"
    offload_grads: bool = False
    seed: int = 0
    compresso: CompressoOptions = field(default_factory=CompressoOptions)
    own: Criterion | None = None


LISTENERS: dict[str, tuple[str, ...]] = {
    "lora_form": ("lora",),
    "taylor_form": ("taylor",),
    "group_reduction": REDUCED,
    "offload_grads": ("taylor",),
}
"""Options, and the criteria that they are of."""


def check_options(options: CriterionOptions, what: str = "criterion") -> None:
    """Make sure that nothing is asked of a criterion that is for another one; ``what`` is what messages call it.

    Raises:
        ValueError: an option would have no effect.
    """
    default = CriterionOptions()
    for option, names in LISTENERS.items():
        if getattr(options, option) != getattr(default, option) and options.name not in names:
            listed = " or ".join(filter(None, (", ".join(map(repr, names[:-1])), repr(names[-1]))))
            raise ValueError(
                f"{option} is an option of the {what} {listed}, and the {what} is {options.name!r}. Leave it out."
            )


# Which criteria can score which kinds of dimensions.


AT_CONSUMERS = ("wanda", "flap", "osscar")
"""Criteria that look at what enters the one layer that reads a dimension."""

READ_EFFECTIVE_WEIGHTS = ("lora", "taylor", "magnitude", "wanda", "flap", "compresso")
"""Criteria that read (or change) weights as ``W + s·B·A``, which those of an adapter's variants are not."""

EXPERT_KINDS = ("experts", "expert_channels")
"""Kinds of dimensions whose groups are stacked experts, or lie inside them."""


def check_reach(
    name: str,
    structure: Structure,
    *,
    lora_form: str = "squared",
    what: str = "criterion",
    while_training: bool = True,
) -> None:
    """Make sure that a criterion can score what is pruned.

    Args:
        name: of the criterion.
        structure: with the kinds that are pruned.
        lora_form: of the criterion ``lora``.
        what: how messages call a criterion.
        while_training: whether it scores in the training's own passes.

    Raises:
        ValueError: it cannot.
    """
    if name == "position" and "blocks" not in structure.kinds:
        raise ValueError(
            f"The {what} 'position' says which blocks come first, and the kinds pruned are "
            f"{', '.join(structure.kinds)}. Choose --dimensions blocks, or another {what}."
        )
    if name == "compresso":
        check_gateable(structure)
    if while_training and name in ("taylor", *AT_CONSUMERS):
        # Whole blocks have experts in them where kinds that were not asked for are of experts.
        inside = [kind for kind in structure.left_out if kind in EXPERT_KINDS] if "blocks" in structure.kinds else []
        experts = [dimension.kind for dimension in structure if dimension.of_experts]
        if experts or inside:
            pruned = f"{experts[0]} are" if experts else "whole blocks with such experts are"
            raise ValueError(
                f"The {what} {name!r} cannot look into stacked experts while they are trained, and {pruned} "
                "pruned. Use fisher, lora, magnitude or random, prune other kinds (--dimensions), or prune in one shot."
            )
    if not structure.spans_blocks:
        return
    kind = structure.kinds[0]
    if name in AT_CONSUMERS:
        raise ValueError(
            f"The {what} {name!r} looks at the one layer that reads a group, and the dimension {kind!r} has no such "
            f"layer. Choose fisher, taylor, magnitude or random."
        )
    if name == "lora" and lora_form == "absolute" and kind == "blocks":
        raise ValueError(
            "lora_form='absolute' divides the scores of each layer by their norm over its groups, and a block's layers "
            "have one group each: all blocks would be equal. Choose lora_form='squared'."
        )
