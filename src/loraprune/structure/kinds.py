"""Selection of a model's dimensions to prune: the chosen kinds, and the layers to keep."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from loraprune.architectures.spec import ArchitectureSpec, DimensionSpec
from loraprune.structure.dimensions import WHOLE_KINDS, PrunableDimension, Structure

EXCLUSIVE = (frozenset({"heads", "query_heads"}), frozenset({"experts", "expert_channels"}))
"""Kinds that overlap: a query head is part of a KV head's group, and a channel is part of its expert."""


def _default_kinds(dimensions: Sequence[PrunableDimension], specs: Collection[DimensionSpec]) -> tuple[str, ...]:
    """Kinds that are pruned by default: those that a stock config can express, and KV heads if they can be removed."""
    wanted = [spec.kind for spec in specs if spec.default]
    found = {dimension.kind for dimension in dimensions}
    heads = [dimension for dimension in dimensions if dimension.kind == "heads"]
    if "query_heads" in found and all(dimension.num_groups == 1 for dimension in heads):
        wanted = ["query_heads" if kind == "heads" else kind for kind in wanted]
    return tuple(kind for kind in dict.fromkeys(wanted) if kind in found)


def choose_kinds(
    dimensions: Sequence[PrunableDimension], spec: ArchitectureSpec, kinds: Sequence[str] | None
) -> tuple[str, ...]:
    """Return the kinds that the user requested, or the default of the family.

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
    alone = [kind for kind in kinds if kind in WHOLE_KINDS]
    if alone and len(kinds) > 1:
        raise ValueError(
            f"The kind {alone[0]} spans all the others, so it is pruned alone. Leave out "
            f"{', '.join(kind for kind in kinds if kind != alone[0])}, or prune one after the other."
        )
    for pair in EXCLUSIVE:
        if pair <= set(kinds):
            raise ValueError(f"The kinds {' and '.join(sorted(pair))} overlap. Choose one of them.")
    return tuple(kinds)


def _first_layers(share: str, count: int) -> range:
    """Indices of a share of the blocks, such as ``10%``, from the first on, rounded to the nearest number."""
    try:
        percent = float(share.removesuffix("%")) if share.endswith("%") else -1.0
    except ValueError:
        percent = -1.0
    if not 0.0 <= percent <= 100.0:
        raise ValueError(f"keep_layers has {share!r}. Write a layer number, or a share of the first layers like 10%.")
    return range(round(count * percent / 100))


def protected_layers(layers: Sequence[int | str], count: int) -> frozenset[int]:
    """Return block indices; negative numbers count from the end, and ``10%`` is that share from the first block on.

    Raises:
        ValueError: there is no such block, or all blocks are protected.
    """
    numbers = [
        number for layer in layers for number in (_first_layers(layer, count) if isinstance(layer, str) else [layer])
    ]
    wrong = [layer for layer in numbers if not -count <= layer < count]
    if wrong:
        raise ValueError(f"There is no layer {wrong[0]} to keep: the model has layers 0 to {count - 1}.")
    protected = frozenset(layer % count for layer in numbers)
    if len(protected) == count:
        raise ValueError("All layers would be kept, so nothing could be pruned. Keep fewer layers.")
    return protected


def check_ragged(structure: Structure, what: str) -> None:
    """Check that widths may differ from block to block.

    Raises:
        ValueError: the family does not support it for the chosen dimensions; the message starts with ``what``.
    """
    bound = [dimension.kind for dimension in structure if dimension.tied or dimension.alibi]
    if structure.spec.ragged_refusal and bound:
        raise ValueError(
            f"{what} in a {structure.spec.model_type} model whose {bound[0]} are pruned: "
            f"{structure.spec.ragged_refusal}. Choose --allocation balanced or uniform without --keep-layers, or leave "
            f"out the {bound[0]} (--dimensions)."
        )
