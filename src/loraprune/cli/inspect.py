"""``loraprune inspect``: prunable dimensions of a model, from its config."""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loraprune.cli.console import (
    begin,
    open_console,
    plain_table,
    report_errors,
    results_console,
    show_runtimes,
)
from loraprune.cli.options import SHAPES_HELP, indices, names
from loraprune.cli.parsing import Parser, help_shown, parsed
from loraprune.display.console import print_line
from loraprune.record.atomic import write_text
from loraprune.record.numbers import count, counted, file_size, percent
from loraprune.record.places import check_place

if TYPE_CHECKING:
    from rich.console import Console
    from transformers import PretrainedConfig

    from loraprune.checkpoint.source import ModelSource
    from loraprune.checkpoint.undescribed import Undescribed
    from loraprune.structure.dimensions import PrunableDimension, Structure
    from loraprune.structure.drafting import BlockKind, Layer


def inspect_parser() -> Parser:
    """Make the parser of the command."""
    parser = Parser(
        "loraprune inspect",
        usage="loraprune inspect MODEL [options]",
        description="Show what can be pruned in a model: dimensions, groups and their parameters. Weights are not "
        "loaded. For an unknown model family, print its layers and a draft of a description.",
        epilog="examples:\n  loraprune inspect demo\n  loraprune inspect llama-2-7b --json\n",
    )
    parser.add_argument("model", metavar="MODEL", help=SHAPES_HELP)
    most = parser.add_argument_group("most used")
    most.add_argument("--dimensions", type=names, help="kinds of structure to prune, such as query_heads,channels "
                      "(default: those of the model family)")  # fmt: skip
    most.add_argument("--keep-layers", type=indices, default=(), help="layers to leave unpruned, such as 0-3,-1 or "
                      "10%% (default: none)")  # fmt: skip
    most.add_argument("--json", action="store_true", help="print JSON, with every layer")
    family = parser.add_argument_group("unknown model families")
    family.add_argument("--draft", type=Path, metavar="FILE.yaml", help="write a description, or a draft of one")
    family.add_argument("--architecture", type=Path, metavar="FILE.yaml", help="read a description")
    hub = parser.add_argument_group("model")
    hub.add_argument("--revision", help="branch, tag or commit of a Hub checkpoint")
    hub.add_argument("--trust-remote-code", action="store_true", help="run Python code that comes with the checkpoint")
    return parser


def inspect_command(arguments: Sequence[str]) -> int:
    """Run the command."""
    parser = inspect_parser()
    shown = help_shown(parser, arguments)
    if shown is not None:
        return shown
    console = open_console()
    return report_errors(console, lambda: _run(parsed(parser, arguments)))


def _run(options: argparse.Namespace) -> int:
    if options.draft is not None:
        check_place(options.draft)
        if options.draft.exists():
            raise ValueError(f"{options.draft} exists. Name a new file with --draft.")
    begin(*(() if options.json else ("inspect", options.model)))
    from loraprune.architectures import UnsupportedArchitectureError, read_spec, register, spec_for
    from loraprune.checkpoint.shapes import find_shapes

    spec = None if options.architecture is None else read_spec(options.architecture)
    source = find_shapes(
        options.model, trust_remote_code=options.trust_remote_code, revision=options.revision, described=False
    )
    if spec is not None:
        register(spec)
        if spec.model_type != source.config.model_type:
            raise ValueError(
                f"{options.architecture} describes models of type {spec.model_type!r}, but {options.model} is of type "
                f"{source.config.model_type!r}."
            )
    try:
        spec_for(source.config)
    except UnsupportedArchitectureError:
        return _show_undescribed(options, source.config)
    return _show_described(options, source)


def _show_described(options: argparse.Namespace, source: ModelSource) -> int:
    from loraprune.architectures.writing import spec_text
    from loraprune.structure.describe import describe

    structure = describe(source.shapes, options.dimensions, options.keep_layers)
    others = [describe(source.shapes, (kind,)) for kind in (*structure.left_out, *structure.whole)]
    dtype, loads_in = source.stored_dtype, _runtimes(source, structure)
    if options.json:
        values = structure_values(options.model, structure, others, str(dtype).removeprefix("torch."))
        print(json.dumps({**values, "loads_in": list(loads_in)}, indent=2))
    else:
        console = results_console()
        show_structure(console, options.model, structure, others, dtype.itemsize)
        if loads_in:
            print_line(console, "Pruned by half, it loads in:")
            show_runtimes(console, loads_in, label="", indent=2)
    _write_draft(options, spec_text(structure.spec))
    return 0


def _runtimes(source: ModelSource, structure: Structure) -> tuple[str, ...]:
    """The runtimes that load the model after half of its groups are removed; empty if half cannot be removed."""
    from loraprune.checkpoint.exports.overview import runtimes_after
    from loraprune.checkpoint.load import meta_model
    from loraprune.structure.plan import Plan
    from loraprune.surgery.slicing import slice_

    try:
        plan = Plan.uniform(structure, 0.5)
    except ValueError:
        return ()
    model = meta_model(copy.deepcopy(source.config), source.auto_class)
    slice_(model, structure, Plan.full(structure), plan)
    return runtimes_after(model, structure, plan)


def _show_undescribed(options: argparse.Namespace, config: PretrainedConfig) -> int:
    from loraprune.checkpoint.undescribed import look_at

    seen = look_at(config)
    if options.json:
        found = {"model_class": seen.model_class, "described": False, "parameters": seen.num_parameters}
        stacks = [asdict(stack) for stack in seen.stacks]
        named = {"model": options.model, "model_type": config.model_type}
        print(json.dumps({**named, **found, "stacks": stacks, "draft": seen.draft}, indent=2))
    else:
        show_outline(results_console(), options.model, config.model_type, seen, with_draft=options.draft is None)
    _write_draft(options, seen.draft)
    return 0


def _write_draft(options: argparse.Namespace, text: str) -> None:
    if options.draft is not None:
        write_text(options.draft, text)


# The layers of an unknown model family, as text and as plain values.

SHOWN_INDICES = 8


def show_outline(console: Console, model: str, model_type: str, seen: Undescribed, *, with_draft: bool) -> None:
    """Print the layers of every kind of block, and a draft of a description."""
    line = partial(print_line, console)
    line(f"{model}: {seen.model_class} ({model_type}), {count(seen.num_parameters)} parameters.")
    line(f"loraprune has no description of {model_type!r}. Its layers, and a draft of a description:")
    for stack in seen.stacks:
        for kind in stack.kinds:
            line("")
            line(f"{stack.path}: {_blocks_text(kind)}")
            width = max(len(layer.name) for layer in kind.layers)
            for layer in kind.layers:
                line(f"  {layer.name:{width}}  {_layer_text(layer)}")
    if not seen.stacks:
        line("It has no list of blocks that contain linear layers.")
    if with_draft:
        line("")
        console.print(seen.draft.rstrip(), highlight=False, soft_wrap=True)
        line("")
        line("--draft FILE.yaml writes this draft to a file; complete it, and pass it with --architecture FILE.yaml.")


def _blocks_text(kind: BlockKind) -> str:
    indices = ", ".join(map(str, kind.indices[:SHOWN_INDICES]))
    more = ", ..." if len(kind.indices) > SHOWN_INDICES else ""
    return f"{len(kind.indices)} block{'s' if len(kind.indices) > 1 else ''} ({indices}{more})"


def _layer_text(layer: Layer) -> str:
    if layer.inputs is None or layer.outputs is None:
        return f"{layer.type} {'x'.join(map(str, layer.shape))}"
    experts = f"{layer.experts} x " if layer.experts is not None else ""
    return f"{layer.type} {experts}{layer.inputs} -> {layer.outputs}{' with bias' if layer.bias else ''}"


# Prunable dimensions, as a table and as plain values.

_GROUPS = {
    "query_heads": "one query head",
    "channels": "one FFN channel",
    "expert_channels": "one FFN channel of one expert",
    "experts": "one expert",
    "shared_channels": "one FFN channel of the shared expert",
    "blocks": "one whole block",
    "hidden": "one channel of the hidden size, in every layer",
}


def structure_values(model: str, structure: Structure, others: Sequence[Structure], dtype: str) -> dict[str, Any]:
    """Return the prunable dimensions as plain values.

    Args:
        model: name of the model, as the user typed it.
        structure: structure with the kinds that are pruned.
        others: structures with one kind each that is not pruned by default.
        dtype: dtype of the stored weights.
    """
    from loraprune.structure.widths import legal_widths

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


def show_structure(
    console: Console, model: str, structure: Structure, others: Sequence[Structure], itemsize: int
) -> None:
    """Print a table row for each kind of dimension, the parameters that stay, and notes on other kinds."""
    hidden = f", hidden size {structure.hidden_size}" if structure.hidden_size else ""
    print_line(
        console,
        f"{model}: {structure.spec.model_type}, {counted(len(structure.blocks), 'layer')}{hidden}, "
        f"{count(structure.num_parameters)} parameters ({file_size(structure.num_parameters * itemsize)} as stored)",
    )
    headings = ("dimension", "one group is", "groups\na layer", "parameters\na group", "in all\nlayers", "share")
    table = plain_table(*headings, left=2)
    for column in (table.columns[0], *table.columns[2:]):
        column.no_wrap = True
    for kind in structure.kinds:
        dimensions = structure.of_kind(kind)
        total = sum(dimension.num_parameters for dimension in dimensions)
        table.add_row(
            kind,
            _group_text(kind, structure),
            _groups_a_layer(dimensions),
            _range(dimension.parameters_per_group for dimension in dimensions),
            count(total),
            percent(total / structure.num_parameters),
        )
    rest = structure.num_parameters - structure.prunable_parameters
    table.add_row("(stays)", "", "", "", count(rest), percent(rest / structure.num_parameters))
    console.print(table)
    for text in (*_legal_lines(structure), *_notes(structure, others)):
        print_line(console, text)


def _legal_lines(structure: Structure) -> Iterable[str]:
    from loraprune.structure.widths import legal_widths

    legal = legal_widths(structure)
    for kind, counts in legal.counts.items():
        strata = structure.of_kind(kind)[0].strata
        each = " of each KV head" if strata > 1 else ""
        yield f"{kind} that may stay{each}: {_numbers(counts)}."
    for kind, multiple in legal.multiples.items():
        if multiple > 1:
            yield f"{kind} that may stay: multiples of {multiple}."


def _notes(structure: Structure, others: Sequence[Structure]) -> Iterable[str]:
    """Notes on counts that differ by layer, kept layers, limits of the stock config, and other kinds."""
    for kind in structure.kinds:
        counts = [dimension.num_groups for dimension in structure.of_kind(kind)]
        if len(set(counts)) > 1:
            yield f"{kind} by layer: {', '.join(map(str, counts))}."
    if structure.protected:
        yield f"Layers that keep everything: {', '.join(map(str, sorted(structure.protected)))}."
    for kind in structure.kinds:
        if not structure.of_kind(kind)[0].config:
            yield f"No stock config can express fewer {kind}: the result is saved with its own modeling file."
    if structure.spec.ragged_refusal and any(dimension.tied or dimension.alibi for dimension in structure):
        yield f"All layers keep the same widths: {structure.spec.ragged_refusal}."
    for other in others:
        kind = other.kinds[0]
        first = other.dimensions[0]
        needs = "".join(f"; {need}" for need in _needs(other, structure))
        if other.spans_blocks:
            yield (
                f"With --dimensions {kind} alone: {_group_text(kind, other)}, {first.num_groups:,} in all, "
                f"{first.parameters_per_group:,} parameters each."
            )
            continue
        yield (
            f"With {kind} in --dimensions: {_group_text(kind, other)}, {_groups_a_layer(other.dimensions)} a layer, "
            f"{first.parameters_per_group:,} parameters each{needs}."
        )


def _needs(other: Structure, structure: Structure) -> list[str]:
    """The conditions for pruning a kind that is not pruned by default."""
    from loraprune.structure.kinds import EXCLUSIVE

    kind = other.kinds[0]
    if other.spans_blocks:
        return ["alone"]
    found = [
        f"instead of {', '.join(sorted(pair - {kind}))}"
        for pair in EXCLUSIVE
        if kind in pair and (pair - {kind}) & set(structure.kinds)
    ]
    if not other.dimensions[0].config:
        found.append("the result is saved with its own modeling file")
    return found


def _numbers(counts: Sequence[int]) -> str:
    if len(counts) > 3 and list(counts) == list(range(counts[0], counts[-1] + 1)):
        return f"{counts[0]} to {counts[-1]}"
    return ", ".join(map(str, counts))


def _range(numbers: Iterable[int]) -> str:
    found = sorted(set(numbers))
    return f"{found[0]:,}" if len(found) == 1 else f"{found[0]:,}-{found[-1]:,}"


def _groups_a_layer(dimensions: Sequence[PrunableDimension]) -> str:
    """``32``, ``16-64``, or ``8 x 64`` for eight experts with 64 groups each."""
    strata = {dimension.strata for dimension in dimensions}
    if strata == {1}:
        return _range(dimension.num_groups for dimension in dimensions)
    return f"{_range(strata)} x {_range(dimension.per_stratum for dimension in dimensions)}"


def _group_text(kind: str, structure: Structure) -> str:
    queries = structure.query_heads_per_group
    if kind == "heads":
        return "one head" if queries == 1 else f"one KV head with its {queries} query heads"
    return _GROUPS.get(kind, "one group")
