"""Facts about a criterion that are known before it is built: its name, what it reads, and what it can score."""

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
"""Kinds of dimensions whose groups are stacked experts or are inside them."""


Scale = Literal["loss", "own", "rank"]
"""How scores of different dimensions compare: as changes of the loss, on a scale per dimension, or by rank."""


@dataclass(frozen=True)
class CriterionConfig:
    """Base of the criteria.

    Attributes:
        name: name in recipes, on the command line and in records.
        comparable: whether scores of different kinds of groups have the same unit, an estimated change of the loss.
        reads_data: whether scores depend on data.
        at_consumers: whether it looks at the inputs of the one layer that reads a dimension.
        reads_gradients: whether it needs backward passes.
        reads_effective_weights: whether it reads (or changes) weights as ``W + s·B·A``, which does not hold for
            variants of LoRA.
        sums_weights: whether it sums over the weights of a group, so it scores a whole block by all of its layers.
        looks_into_experts: whether it can score inside stacked experts during training.
        learns: whether it learns gates from the first step until its only cut.
        unstructured: whether it zeroes single weights and cuts no groups.
        nested: whether its options are passed as a mapping under its name.
        needs_training: why it cannot score a model before tuning; empty if it can.
        too_slow: why it cannot score at every step of a training run; empty if it can.
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
        """Build the criterion for one run; ``seed`` is that of the run."""
        raise TypeError(f"The criterion {self.name!r} does not score groups during training.")

    def scaled(self, scores: Scores, allocation: str, structure: Structure) -> tuple[Scores, Scale]:
        """Return the scores on the scale by which an allocation compares the layers of a structure, and that scale."""
        return scores, "loss" if self.comparable else "own"

    def check(self, structure: Structure, *, while_training: bool = True) -> None:
        """Check that the criterion can score what is pruned.

        Args:
            structure: structure with the kinds to prune.
            while_training: whether the criterion scores in the training's own passes.

        Raises:
            ValueError: it cannot.
        """
        if while_training and not self.looks_into_experts:
            self._check_experts(structure)
        if structure.spans_blocks and self.at_consumers:
            raise ValueError(
                f"The criterion {self.name!r} scores a group by the one layer that reads it, and the dimension "
                f"{structure.kinds[0]!r} has no such layer. Choose fisher, taylor, magnitude or random."
            )

    def _check_experts(self, structure: Structure) -> None:
        # Whole blocks contain experts if the kinds that are not pruned include experts.
        inside = [kind for kind in structure.left_out if kind in EXPERT_KINDS] if "blocks" in structure.kinds else []
        experts = [dimension.kind for dimension in structure if dimension.of_experts]
        if experts or inside:
            pruned = f"{experts[0]} are" if experts else "whole blocks with such experts are"
            raise ValueError(
                f"The criterion {self.name!r} cannot look into stacked experts during training, but {pruned} "
                "pruned. Use fisher, lora, magnitude or random, prune other kinds (--dimensions), or prune in one shot."
            )


@dataclass(frozen=True)
class OwnCriterion(CriterionConfig):
    """Configuration of a criterion of the user's own class.

    Attributes:
        criterion: the criterion; every run works on a copy.
    """

    criterion: Any
    reads_gradients = True

    def __post_init__(self) -> None:
        from loraprune.importance.criterion import check_protocol

        check_protocol(self.criterion)
        object.__setattr__(self, "name", type(self.criterion).__name__)
        object.__setattr__(self, "comparable", self.criterion.comparable)

    def build(self, seed: int = 0) -> Criterion:
        """Return a copy of the object."""
        built: Criterion = copy.deepcopy(self.criterion)
        return built


def own_criterion(criterion: object) -> OwnCriterion:
    """Wrap a user's own criterion in a configuration.

    Raises:
        ValueError: the object is not a criterion.
    """
    return criterion if isinstance(criterion, OwnCriterion) else OwnCriterion(criterion)
