"""What is known of a criterion before it is built: its name, what it reads, and what it can score."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from loraprune.options.field import check_fields

if TYPE_CHECKING:
    from loraprune.importance.criterion import Criterion
    from loraprune.importance.moving_average import Scores
    from loraprune.structure.dimensions import Structure

EXPERT_KINDS = ("experts", "expert_channels")
"""Kinds of dimensions whose groups are stacked experts, or lie inside them."""


Scale = Literal["loss", "own", "rank"]
"""How scores of different dimensions compare: as changes of the loss, each on a scale of its own, or by rank."""


@dataclass(frozen=True)
class CriterionConfig:
    """Base of the criteria.

    Attributes:
        name: in recipes, on the command line and in records.
        comparable: scores of different kinds of groups have the same unit, an estimated change of the loss.
        reads_data: whether scores depend on data.
        at_consumers: whether it looks at what enters the one layer that reads a dimension.
        reads_gradients: whether it scores by backward passes.
        reads_effective_weights: whether it reads (or changes) weights as ``W + s·B·A``, which those of an adapter's
            variants are not.
        sums_weights: whether it adds up over the weights of a group, so that a whole block is all of its layers.
        looks_into_experts: whether it can look into stacked experts while they are trained.
        learns: whether it learns gates from the first step to the one cut that is made.
        unstructured: whether it makes single weights zero and cuts no group.
        nested: options are given as a mapping under the criterion's name.
        needs_training: why it cannot score a model before it is tuned; empty where it can.
        too_slow: why it cannot score at every step of a training run; empty where it can.
    """

    name: ClassVar[str] = ""
    comparable: ClassVar[bool] = False
    reads_data: ClassVar[bool] = True
    at_consumers: ClassVar[bool] = False
    reads_gradients: ClassVar[bool] = False
    reads_effective_weights: ClassVar[bool] = False
    sums_weights: ClassVar[bool] = False
    looks_into_experts: ClassVar[bool] = True
    learns: ClassVar[bool] = False
    unstructured: ClassVar[bool] = False
    nested: ClassVar[bool] = False
    needs_training: ClassVar[str] = ""
    too_slow: ClassVar[str] = ""

    def __post_init__(self) -> None:
        check_fields(self, f"{self.name}." if self.nested else "")

    def build(self, seed: int = 0) -> Criterion:
        """What does the work, for one run; ``seed`` is that of the run."""
        raise TypeError(f"The criterion {self.name!r} scores no groups while a model is trained.")

    def scaled(self, scores: Scores, allocation: str) -> tuple[Scores, Scale]:
        """Scores as an allocation compares them over the layers, and their scale."""
        return scores, "loss" if self.comparable else "own"

    def check(self, structure: Structure, *, while_training: bool = True) -> None:
        """Make sure that the criterion can score what is pruned.

        Args:
            structure: with the kinds that are pruned.
            while_training: whether it scores in the training's own passes.

        Raises:
            ValueError: it cannot.
        """
        if while_training and not self.looks_into_experts:
            self._check_experts(structure)
        if structure.spans_blocks and self.at_consumers:
            raise ValueError(
                f"The criterion {self.name!r} looks at the one layer that reads a group, and the dimension "
                f"{structure.kinds[0]!r} has no such layer. Choose fisher, taylor, magnitude or random."
            )

    def _check_experts(self, structure: Structure) -> None:
        # Whole blocks have experts in them where kinds that were not asked for are of experts.
        inside = [kind for kind in structure.left_out if kind in EXPERT_KINDS] if "blocks" in structure.kinds else []
        experts = [dimension.kind for dimension in structure if dimension.of_experts]
        if experts or inside:
            pruned = f"{experts[0]} are" if experts else "whole blocks with such experts are"
            raise ValueError(
                f"The criterion {self.name!r} cannot look into stacked experts while they are trained, and {pruned} "
                "pruned. Use fisher, lora, magnitude or random, prune other kinds (--dimensions), or prune in one shot."
            )


@dataclass(frozen=True)
class OwnCriterion(CriterionConfig):
    """A criterion of the user's own class, as one of ours.

    Attributes:
        criterion: the object; every run works with a copy.
    """

    criterion: Any
    reads_gradients = True

    def __post_init__(self) -> None:
        from loraprune.importance.criterion import check_protocol

        check_protocol(self.criterion)
        object.__setattr__(self, "name", type(self.criterion).__name__)
        object.__setattr__(self, "comparable", self.criterion.comparable)

    def build(self, seed: int = 0) -> Criterion:
        """A copy of the object."""
        built: Criterion = copy.deepcopy(self.criterion)
        return built


def own_criterion(criterion: object) -> OwnCriterion:
    """A user's own criterion as one of ours.

    Raises:
        ValueError: the object is no criterion.
    """
    return criterion if isinstance(criterion, OwnCriterion) else OwnCriterion(criterion)
