"""What can be pruned in a model, as a table and as plain values."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from loraprune.cli.progress import count
from loraprune.structure.kinds import EXCLUSIVE
from loraprune.structure.widths import legal_widths

if TYPE_CHECKING:
    from rich.console import Console

    from loraprune.structure.dimensions import PrunableDimension, Structure

GROUPS = {
    "query_heads": "one query head",
    "channels": "one FFN channel",
    "expert_channels": "one FFN channel of one expert",
    "experts": "one expert",
    "shared_channels": "one FFN channel of the shared expert",
    "blocks": "one whole block",
    "hidden": "one channel of the hidden size, in every layer",
}


def as_values(model: str, structure: Structure, others: Sequence[Structure], dtype: str) -> dict[str, Any]:
    """Everything as plain values.

    Args:
        model: as the user named it.
        structure: of the kinds that are pruned.
        others: the same model with each of the kinds that are not.
        dtype: in which its weights are stored.
    """
    legal = legal_widths(structure)
    return {
        "model": model,
        "model_type": structure.spec.model_type,
        "dtype": dtype,
        "parameters": structure.num_parameters,
        "prunable_parameters": structure.prunable_parameters,
        "query_heads_per_kv_head": structure.query_heads_per_group,
        "kinds": list(structure.kinds),
        "other_kinds": {other.kinds[0]: _needs(other, structure) for other in others},
        "keep_layers": sorted(structure.protected),
        "legal_counts": {kind: list(counts) for kind, counts in legal.counts.items()},
        "multiples": dict(legal.multiples),
        "dimensions": [_dimension_values(dimension) for dimension in structure],
    }


def _dimension_values(dimension: PrunableDimension) -> dict[str, Any]:
    return {
        "name": dimension.name,
        "kind": dimension.kind,
        "layer": dimension.layer,
        "groups": dimension.num_groups,
        "strata": dimension.strata,
        "parameters_per_group": dimension.parameters_per_group,
        "members": [
            {
                "module": member.module,
                "parameter": member.parameter,
                "axis": member.axis,
                "segments": list(member.segments),
            }
            for member in dimension.all_members
        ],
        "consumer": dimension.consumer.module,
        "config": sorted(dimension.config or {}),
    }


def show(console: Console, model: str, structure: Structure, others: Sequence[Structure], itemsize: int) -> None:
    """Print one line a kind of dimension, what stays, and what could be pruned besides."""
    from rich import box
    from rich.table import Table

    hidden = f", hidden size {structure.hidden_size}" if structure.hidden_size else ""
    _line(
        console,
        f"{model}: {structure.spec.model_type}, {len(structure.blocks)} layers{hidden}, "
        f"{count(structure.num_parameters)} parameters ({structure.num_parameters * itemsize / 1e9:.3g} GB as stored)",
    )
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("prunable dimension", "one group is"):
        table.add_column(column)
    for column in ("groups a layer", "parameters a group", "in all layers", "share"):
        table.add_column(column, justify="right")
    for kind in structure.kinds:
        dimensions = structure.of_kind(kind)
        total = sum(dimension.num_parameters for dimension in dimensions)
        table.add_row(
            kind,
            _group_text(kind, structure),
            _groups_a_layer(dimensions),
            _range(dimension.parameters_per_group for dimension in dimensions),
            count(total),
            f"{total / structure.num_parameters:.1%}",
        )
    rest = structure.num_parameters - structure.prunable_parameters
    table.add_row("(stays)", "", "", "", count(rest), f"{rest / structure.num_parameters:.1%}")
    console.print(table)
    for text in (*_legal_lines(structure), *_notes(structure, others)):
        _line(console, text)


def _line(console: Console, text: str) -> None:
    console.print(text, highlight=False, markup=False, soft_wrap=True)


def _legal_lines(structure: Structure) -> Iterable[str]:
    legal = legal_widths(structure)
    for kind, counts in legal.counts.items():
        strata = structure.of_kind(kind)[0].strata
        each = " of each KV head" if strata > 1 else ""
        yield f"{kind} that may stay{each}: {_numbers(counts)}."
    for kind, multiple in legal.multiples.items():
        if multiple > 1:
            yield f"{kind} that may stay: multiples of {multiple}."


def _notes(structure: Structure, others: Sequence[Structure]) -> Iterable[str]:
    """What differs from layer to layer, what is kept, what a stock config cannot say, and what else there is."""
    for kind in structure.kinds:
        counts = [dimension.num_groups for dimension in structure.of_kind(kind)]
        if len(set(counts)) > 1:
            yield f"{kind} by layer: {', '.join(map(str, counts))}."
    if structure.protected:
        yield f"Layers that keep everything: {', '.join(map(str, sorted(structure.protected)))}."
    for kind in structure.kinds:
        if not structure.of_kind(kind)[0].config:
            yield f"No stock config can say fewer {kind}: the result is saved with a modeling file of its own."
    if structure.spec.ragged_refusal and any(dimension.tied or dimension.alibi for dimension in structure):
        yield f"All layers keep the same widths: {structure.spec.ragged_refusal}."
    for other in others:
        kind = other.kinds[0]
        first = other.dimensions[0]
        needs = "".join(f"; {need}" for need in _needs(other, structure))
        if other.spans_blocks:
            yield (
                f"With --dimensions {kind}, alone: {_group_text(kind, other)}, {first.num_groups:,} in all, "
                f"{first.parameters_per_group:,} parameters each."
            )
            continue
        yield (
            f"With --dimensions also {kind}: {_group_text(kind, other)}, {_groups_a_layer(other.dimensions)} a layer, "
            f"{first.parameters_per_group:,} parameters each{needs}."
        )


def _needs(other: Structure, structure: Structure) -> list[str]:
    """What comes with pruning a kind that is not pruned unless it is chosen."""
    kind = other.kinds[0]
    if other.spans_blocks:
        return ["alone"]
    found = [
        f"instead of {', '.join(sorted(pair - {kind}))}"
        for pair in EXCLUSIVE
        if kind in pair and (pair - {kind}) & set(structure.kinds)
    ]
    if not other.dimensions[0].config:
        found.append("the result is saved with a modeling file of its own")
    return found


def _numbers(counts: Sequence[int]) -> str:
    if len(counts) > 3 and list(counts) == list(range(counts[0], counts[-1] + 1)):
        return f"{counts[0]} to {counts[-1]}"
    return ", ".join(map(str, counts))


def _range(numbers: Iterable[int]) -> str:
    found = sorted(set(numbers))
    return f"{found[0]:,}" if len(found) == 1 else f"{found[0]:,}-{found[-1]:,}"


def _groups_a_layer(dimensions: Sequence[PrunableDimension]) -> str:
    """``32``, ``16-64``, or ``8 x 64`` where eight experts have 64 each."""
    strata = {dimension.strata for dimension in dimensions}
    if strata == {1}:
        return _range(dimension.num_groups for dimension in dimensions)
    return f"{_range(strata)} x {_range(dimension.per_stratum for dimension in dimensions)}"


def _group_text(kind: str, structure: Structure) -> str:
    queries = structure.query_heads_per_group
    if kind == "heads":
        return "one head" if queries == 1 else f"one KV head with its {queries} query heads"
    return GROUPS.get(kind, "one group")
