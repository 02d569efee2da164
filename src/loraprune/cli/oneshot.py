"""``loraprune oneshot``: prune a checkpoint on calibration data, without training."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from loraprune.cli.console import open_console, quiet_libraries, report_errors, results_console
from loraprune.cli.export import export_sparse, sparse_folder
from loraprune.cli.oneshot_options import GROUPS, OPTIONS
from loraprune.cli.options import add_options, fields_of
from loraprune.cli.recipes import (
    ArgumentError,
    Parser,
    check_known,
    read_recipe,
    suggestion,
    typed,
    with_dashes,
)

if TYPE_CHECKING:
    from rich.console import Console

    from loraprune.pruning.oneshot_config import OneshotConfig
    from loraprune.tasks.options import RunOptions

DESCRIPTION = """Prune a model on calibration data, without training.

With --ratio, heads and channels go and the model becomes smaller; with --sparsity, weights become zero."""
EXAMPLES = """examples:
  loraprune oneshot MODEL --data DATA --ratio 0.2 -o OUT
  loraprune oneshot MODEL --data DATA --method sparsegpt --sparsity 2:4 -o OUT
  loraprune oneshot MODEL --method magnitude --sparsity 0.5 -o OUT
"""


def build_parser() -> argparse.ArgumentParser:
    """The options of the command; nothing has a default."""
    parser = Parser(
        prog="loraprune oneshot",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="loraprune oneshot MODEL --data DATA (--ratio 0.5 | --sparsity 0.5) -o OUT [options]",
        allow_abbrev=False,
    )
    add_options(parser, GROUPS)
    return parser


def main(arguments: Sequence[str]) -> int:
    """Run the command."""
    arguments = [with_dashes(argument) for argument in arguments]
    parser = build_parser()
    if not arguments or "-h" in arguments or "--help" in arguments:
        parser.print_help() if arguments else parser.print_usage()
        return 0 if arguments else 2
    console = open_console(quiet="-q" in arguments or "--quiet" in arguments)
    return report_errors(console, lambda: _run(_values(parser, arguments), console, arguments))


def _values(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> dict[str, Any]:
    """Recipe and command line together; the command line wins.

    Raises:
        ValueError: an option is unknown, or something that is needed is missing.
    """
    try:
        given = vars(parser.parse_args(arguments))
    except ArgumentError as error:
        near = suggestion(str(error), OPTIONS)
        raise ValueError(f"{error}{near} (loraprune oneshot --help lists the options)") from None
    recipe = read_recipe(given["config"]) if "config" in given else {}
    check_known(recipe, {*OPTIONS, "model"})
    amounts = ("ratio", "sparsity", "target_params")
    if any(name in given for name in amounts):
        recipe = {name: value for name, value in recipe.items() if name not in amounts}
    values = {name: typed(name, value, parser) for name, value in recipe.items()} | given
    if values.get("target_params") is not None:
        if values.get("ratio") is not None or values.get("sparsity") is not None:
            raise ValueError("--target-params says how much is to go: give no --ratio and no --sparsity with it.")
        values["ratio"] = 0.5  # the parameters decide
    for name, remedy in (
        ("model", "Name a checkpoint: loraprune oneshot MODEL --data DATA --ratio 0.5 -o OUT."),
        ("output", "Name the folder of the result with -o."),
    ):
        if values.get(name) is None:
            raise ValueError(f"No {name} was given. {remedy}")
    return values


def _run(values: dict[str, Any], console: Console, arguments: Sequence[str]) -> int:
    from loraprune.architectures import read_spec, register
    from loraprune.cli.oneshot_results import show_oneshot_result
    from loraprune.cli.steps import StepsProgress
    from loraprune.pruning.oneshot_config import OneshotConfig
    from loraprune.recipes.oneshot import oneshot
    from loraprune.tasks.options import RunOptions

    quiet_libraries()
    if values.get("architecture") is not None:
        register(read_spec(values["architecture"]))
    chosen = fields_of(OPTIONS, values, "oneshot")
    if "head_rounding" in chosen:
        chosen["any_head_count"] = chosen.pop("head_rounding") == "any"
    config = OneshotConfig(**chosen)
    options = RunOptions(**fields_of(OPTIONS, values, "run"), command=shlex.join(["loraprune", "oneshot", *arguments]))
    form = values.get("format", "dense")
    _check_format(form, values["model"], config, options)
    with StepsProgress(console, quiet=bool(values.get("quiet"))) as told:
        result = oneshot(
            values["model"],
            values.get("data"),
            config,
            tokenizer=values.get("tokenizer"),
            image_processor=values.get("image_processor"),
            options=options,
            told=told,
        )
    show_oneshot_result(results_console(), result)
    if form != "dense":
        assert options.output is not None
        export_sparse(options.output, form, overwrite=options.overwrite)
    return 0


def _check_format(form: str, model: str, config: OneshotConfig, options: RunOptions) -> None:
    """Make sure, before any work, that the result can be written in the format that was asked for.

    Raises:
        ValueError: it is for 2:4 alone, or this machine or the installed packages cannot do it.
    """
    from loraprune.checkpoint.save import check_output

    if form == "dense":
        return
    if config.structured or str(config.pattern) != "2:4":
        raise ValueError(f"--format {form} is for --sparsity 2:4. Leave it out, or ask for that.")
    if form == "semi-structured":
        from loraprune.checkpoint.exports.runtimes_semi_structured import check_semi_structured
        from loraprune.checkpoint.load import checkpoint_dtype, load_config

        check_semi_structured()
        checkpoint = load_config(model, trust_remote_code=options.trust_remote_code, revision=options.revision)
        check_semi_structured(dtype=checkpoint_dtype(checkpoint))
    else:
        from loraprune.checkpoint.exports.compressed_tensors import check_package

        check_package()
    assert options.output is not None
    check_output(sparse_folder(options.output, form), overwrite=options.overwrite)
