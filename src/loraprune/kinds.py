"""Which of a model's dimensions are pruned: the kinds that are chosen, and the layers that are kept."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from loraprune.architectures.spec import ArchitectureSpec, DimensionSpec
from loraprune.dimensions import PrunableDimension, Structure

EXCLUSIVE = (frozenset({"heads", "query_heads"}), frozenset({"experts", "expert_channels"}))
"""Kinds that overlap: a query head is part of a KV head's group, a channel part of its expert."""


def _default_kinds(dimensions: Sequence[PrunableDimension], specs: Collection[DimensionSpec]) -> tuple[str, ...]:
    """Kinds that are pruned unless the user says otherwise: what a stock config can say, and KV heads if any may go."""
    wanted = [spec.kind for spec in specs if spec.default]
    found = {dimension.kind for dimension in dimensions}
    heads = [dimension for dimension in dimensions if dimension.kind == "heads"]
    if "query_heads" in found and all(dimension.num_groups == 1 for dimension in heads):
        wanted = ["query_heads" if kind == "heads" else kind for kind in wanted]
    return tuple(kind for kind in dict.fromkeys(wanted) if kind in found)


def choose_kinds(
    dimensions: Sequence[PrunableDimension], spec: ArchitectureSpec, kinds: Sequence[str] | None
) -> tuple[str, ...]:
    """The kinds that the user asked for, or the family's default.

    Raises:
        ValueError: the model has no such kind, or two of them overlap.
    """
    found = tuple(dict.fromkeys(dimension.kind for dimension in dimensions))
    if kinds is None:
        return _default_kinds(dimensions, [d for stack in spec.stacks for d in stack.dimensions])
    unknown = [kind for kind in kinds if kind not in found]
    if unknown:
        raise ValueError(
            f"A {spec.model_type} model has no dimensions of kind {unknown[0]!r}; it has {', '.join(found)}."
        )
    for pair in EXCLUSIVE:
        if pair <= set(kinds):
            raise ValueError(f"The kinds {' and '.join(sorted(pair))} overlap; choose one of them.")
    return tuple(kinds)


def protected_layers(layers: Sequence[int], count: int) -> frozenset[int]:
    """Indices of blocks, counted from the end where negative.

    Raises:
        ValueError: there is no such block, or all are protected.
    """
    wrong = [layer for layer in layers if not -count <= layer < count]
    if wrong:
        raise ValueError(f"There is no layer {wrong[0]} to keep: the model has layers 0 to {count - 1}.")
    protected = frozenset(layer % count for layer in layers)
    if len(protected) == count:
        raise ValueError("Every layer is to be kept, so nothing could be pruned. Keep fewer layers.")
    return protected


def check_ragged(structure: Structure, what: str) -> None:
    """Make sure that widths may differ from block to block.

    Raises:
        ValueError: the family cannot have that for the chosen dimensions; the message, after ``what``, says why.
    """
    bound = [dimension.kind for dimension in structure if dimension.tied or dimension.alibi]
    if structure.spec.ragged_refusal and bound:
        raise ValueError(
            f"{what} in a {structure.spec.model_type} model whose {bound[0]} are pruned: "
            f"{structure.spec.ragged_refusal}. Choose --allocation balanced or uniform and no --keep-layers, or leave "
            f"the {bound[0]} out (--dimensions)."
        )
