"""``loraprune inspect``: what can be pruned in a model, from its config alone."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from loraprune.cli.console import open_console, quiet_libraries, report_errors, results_console

if TYPE_CHECKING:
    from rich.console import Console

    from loraprune.structure import Structure
    from loraprune.widths import LegalWidths


def parser() -> argparse.ArgumentParser:
    """The options of the command."""
    parser = argparse.ArgumentParser(
        prog="loraprune inspect",
        description="Show what can be pruned in a model: dimensions, groups, parameters a group, and what stays. "
        "Reads the config alone; no weights are loaded.",
    )
    parser.add_argument("model", help="a checkpoint's folder or its hub name")
    parser.add_argument("--json", action="store_true", help="the same as JSON, with every layer")
    parser.add_argument("--revision", default=None, help="branch, tag or commit of a hub checkpoint")
    parser.add_argument("--trust-remote-code", action="store_true", help="run code that the checkpoint brings (off)")
    return parser


def main(arguments: Sequence[str]) -> int:
    """Run the command."""
    options = parser().parse_args(arguments)
    console = open_console()
    return report_errors(console, lambda: _run(options))


def _run(options: argparse.Namespace) -> int:
    from loraprune.recipes.loading import checkpoint_dtype, load_config, meta_model
    from loraprune.structure import describe
    from loraprune.widths import legal_widths

    quiet_libraries()
    config = load_config(options.model, trust_remote_code=options.trust_remote_code, revision=options.revision)
    structure = describe(meta_model(config))
    legal = legal_widths(structure)
    dtype = checkpoint_dtype(config)
    if options.json:
        print(json.dumps(as_values(options.model, structure, legal, str(dtype).removeprefix("torch.")), indent=2))
    else:
        show(results_console(), options.model, structure, legal, dtype.itemsize)
    return 0


def as_values(model: str, structure: Structure, legal: LegalWidths, dtype: str) -> dict[str, Any]:
    """Everything as plain values."""
    return {
        "model": model,
        "model_type": structure.spec.model_type,
        "dtype": dtype,
        "parameters": structure.num_parameters,
        "prunable_parameters": structure.prunable_parameters,
        "query_heads_per_kv_head": structure.query_heads_per_group,
        "legal_kv_heads": list(legal.head_groups),
        "channel_multiple": legal.channel_multiple,
        "dimensions": [
            {
                "name": dimension.name,
                "kind": dimension.kind,
                "layer": dimension.layer,
                "groups": dimension.num_groups,
                "parameters_per_group": dimension.parameters_per_group,
                "members": {member.module: member.axis for member in dimension.all_members},
                "consumer": dimension.consumer.module,
            }
            for dimension in structure
        ],
    }


def show(console: Console, model: str, structure: Structure, legal: LegalWidths, itemsize: int) -> None:
    """Print one line a kind of dimension, and what stays."""
    from rich import box
    from rich.table import Table

    from loraprune.cli.progress import count

    console.print(
        f"{model}: {structure.spec.model_type}, {len(structure.blocks)} layers, hidden size {structure.hidden_size}, "
        f"{count(structure.num_parameters)} parameters ({structure.num_parameters * itemsize / 1e9:.3g} GB as stored)",
        highlight=False,
        markup=False,
    )
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("prunable dimension", "one group is"):
        table.add_column(column)
    for column in ("groups a layer", "parameters a group", "in all layers", "share"):
        table.add_column(column, justify="right")
    for kind in structure.kinds:
        dimensions = structure.of_kind(kind)
        counts = sorted({dimension.num_groups for dimension in dimensions})
        total = sum(dimension.num_parameters for dimension in dimensions)
        table.add_row(
            kind,
            _group_text(kind, structure),
            str(counts[0]) if len(counts) == 1 else f"{counts[0]}-{counts[-1]}",
            f"{dimensions[0].parameters_per_group:,}",
            count(total),
            f"{total / structure.num_parameters:.1%}",
        )
    rest = structure.num_parameters - structure.prunable_parameters
    table.add_row("(stays)", "embeddings, norms, head", "", "", count(rest), f"{rest / structure.num_parameters:.1%}")
    console.print(table)
    heads = ", ".join(str(number) for number in legal.head_groups)
    console.print(
        f"KV heads that the config accepts: {heads}. FFN widths are rounded to multiples of {legal.channel_multiple}.",
        highlight=False,
        soft_wrap=True,
    )


def _group_text(kind: str, structure: Structure) -> str:
    if kind == "channels":
        return "one FFN channel"
    queries = structure.query_heads_per_group
    return "one head" if queries == 1 else f"one KV head with its {queries} query heads"
