"""``loraprune inspect``: what can be pruned in a model, from its config alone."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from loraprune.cli.console import open_console, quiet_libraries, report_errors, results_console
from loraprune.cli.numbers import indices, names

if TYPE_CHECKING:
    from transformers import PretrainedConfig


def parser() -> argparse.ArgumentParser:
    """The options of the command."""
    parser = argparse.ArgumentParser(
        prog="loraprune inspect",
        description="Show what can be pruned in a model: dimensions, groups, parameters a group, and what stays. Of a "
        "model that loraprune does not know: its layers, and a start for a description. "
        "Reads the config alone; no weights are loaded.",
    )
    parser.add_argument("model", help="a checkpoint's folder or its hub name")
    parser.add_argument("--dimensions", type=names, help="kinds of dimensions to prune, such as query_heads,channels")
    parser.add_argument("--keep-layers", type=indices, default=(), help="layers that keep everything, such as 0,1,-1")
    parser.add_argument("--architecture", type=Path, metavar="FILE.yaml", help="description of the model's family")
    parser.add_argument("--draft", type=Path, metavar="FILE.yaml", help="write the description, or a start for one")
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
    from loraprune.architectures import UnsupportedArchitectureError, read_spec, register, spec_for
    from loraprune.checkpoint.load import load_config

    quiet_libraries()
    spec = None if options.architecture is None else read_spec(options.architecture)
    config = load_config(
        options.model, trust_remote_code=options.trust_remote_code, revision=options.revision, described=False
    )
    if spec is not None:
        register(spec)
        if spec.model_type != config.model_type:
            raise ValueError(
                f"{options.architecture} describes models of type {spec.model_type!r}, and {options.model} is of type "
                f"{config.model_type!r}."
            )
    try:
        spec_for(config)
    except UnsupportedArchitectureError:
        return _show_undescribed(options, config)
    return _show_described(options, config)


def _show_described(options: argparse.Namespace, config: PretrainedConfig) -> int:
    from loraprune.architectures.writing import spec_text
    from loraprune.checkpoint.load import checkpoint_dtype, meta_model
    from loraprune.cli.structure_table import as_values, show
    from loraprune.structure.describe import describe

    model = meta_model(config)
    structure = describe(model, options.dimensions, options.keep_layers)
    others = [describe(model, (kind,)) for kind in (*structure.left_out, *structure.whole)]
    dtype = checkpoint_dtype(config)
    if options.json:
        print(json.dumps(as_values(options.model, structure, others, str(dtype).removeprefix("torch.")), indent=2))
    else:
        show(results_console(), options.model, structure, others, dtype.itemsize)
    _write_draft(options, spec_text(structure.spec))
    return 0


def _show_undescribed(options: argparse.Namespace, config: PretrainedConfig) -> int:
    from loraprune.checkpoint.undescribed import look_at
    from loraprune.cli.outline_table import as_values, show

    seen = look_at(config)
    if options.json:
        print(json.dumps(as_values(options.model, config.model_type, seen), indent=2))
    else:
        show(results_console(), options.model, config.model_type, seen, with_draft=options.draft is None)
    _write_draft(options, seen.draft)
    return 0


def _write_draft(options: argparse.Namespace, text: str) -> None:
    if options.draft is None:
        return
    if options.draft.exists():
        raise ValueError(f"{options.draft} exists. Name a new file with --draft.")
    options.draft.write_text(text, encoding="utf-8")
