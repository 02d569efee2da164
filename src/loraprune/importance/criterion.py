"""Which criteria can score which kinds of dimensions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from loraprune.importance.evidence.learned_gates import check_gateable

if TYPE_CHECKING:
    from loraprune.structure.dimensions import Structure

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
