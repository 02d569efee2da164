"""``loraprune oneshot``: prune a checkpoint on calibration data, without training."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich import box
from rich.table import Table

from loraprune.cli.console import open_console, quiet_libraries, report_errors, results_console, show_end, show_report
from loraprune.cli.export import export_sparse, sparse_folder
from loraprune.cli.options import (
    SWITCH,
    ArgumentError,
    Option,
    Parser,
    add_options,
    check_known,
    check_recipe_stays,
    fields_of,
    indices,
    names,
    old_names,
    option,
    parameter_count,
    read_recipe,
    suggestion,
    typed,
    with_dashes,
    with_new_names,
)
from loraprune.record.numbers import percent

if TYPE_CHECKING:
    from rich.console import Console

    from loraprune.pruning.oneshot_config import OneshotConfig
    from loraprune.recipes.oneshot import OneshotResult
    from loraprune.sparsity.whole_model import MatrixRecord
    from loraprune.tasks.options import RunOptions


_FORMATS = ("dense", "semi-structured", "compressed-tensors")

_GROUPS: dict[str, tuple[Option, ...]] = {
    "what goes in and where it goes": (
        option("data", "call", "calibration data: a .jsonl, .json, .csv, .parquet or .txt file, a folder of such files "
               "or of images by class, or a hub data set"),
        option("output", "run", "folder of the pruned checkpoint", type=Path),
        option("tokenizer", "call", "checkpoint to take the tokenizer from (default: MODEL)"),
        option("image_processor", "call", "checkpoint to take the image processor from (default: MODEL)"),
        option("split", "run", "split of a hub data set (train)"),
        option("eval_split", "run", "split of a hub data set given as --eval-data (validation)"),
        option("data_name", "run", "configuration of a hub data set"),
        option("eval_data", "run", "data to measure on (default: a twentieth of the calibration data)"),
        option("eval_sequences", "run", "rows to measure on, 0 for none (64; 1000 for classifiers)", type=int),
        option("overwrite", "run", "replace what the output folder holds", **SWITCH),
        option("trust_remote_code", "run", "run code that the checkpoint brings (off)", **SWITCH),
        option("revision", "run", "branch, tag or commit of a hub checkpoint"),
    ),
    "how much goes: one of these": (
        option("ratio", "oneshot", "share of the prunable parameters that goes: fewer heads and channels", type=float),
        option("target_params", "run", "instead of a ratio: parameters of the result, such as 4.5B",
               type=parameter_count),
        option("sparsity", "oneshot", "share of weights that become zero, such as 0.5, or N:M, such as 2:4 (N of every "
               "M consecutive weights of a row)"),
    ),
    "how": (
        option("criterion", "oneshot", "with --ratio: osscar, fisher, taylor, flap, wanda, magnitude, random, and of "
               "whole blocks position (osscar; fisher for blocks and the hidden size); "
               "with --sparsity: sparsegpt, wanda, magnitude, wanda+obs, magnitude+obs (sparsegpt)", old="method"),
        option("keep_layers", "oneshot", "layers that keep everything, such as 0-3,-1; 10%: the first tenth (none)",
                type=indices),
        option("damping", "oneshot", "of refit, osscar and sparsegpt, as a share of the mean diagonal (0.01)",
               type=float),
        option("architecture", "call", "YAML description of a family that loraprune does not know", type=Path),
    ),
    "how, with --ratio": (
        option("repair", "oneshot", "stream: least squares towards the dense model's residual stream; refit: towards "
               "each layer's own output; bias: the mean of what goes; none (stream)"),
        option("allocation", "oneshot", "uniform, balanced or global, as in loraprune prune (uniform)"),
        option("dimensions", "oneshot", "kinds of dimensions to prune, such as query_heads,channels, or whole "
               "blocks, or hidden for the hidden size (by family)",
               type=names),
        option("taylor_form", "oneshot", "of taylor: squared, or LLM-Pruner's first, second, mix, vectorize (squared)"),
        option("group_reduction", "oneshot", "of taylor and magnitude: sum, mean, max, prod, first or last of the "
               "layers of a group (sum)"),
        option("offload_grads", "oneshot", "of taylor: gradients are kept in the machine's memory (off)", **SWITCH),
        option("cuts", "oneshot", "steps in which the ratio is reached, scored anew before each (1)", type=int),
        option("channel_multiple", "oneshot", "round FFN widths to a multiple (by size)", type=int),
        option("head_counts", "oneshot", "config: head counts that the model's config accepts; any: export a Llama "
               "as a Mistral if need be (config)", choices=("config", "any"), old="head_rounding"),
    ),
    "how, with --sparsity": (
        option("within", "oneshot", "of wanda and magnitude: compare the weights of a row, or of the matrix (wanda: "
               "row, magnitude: matrix)"),
        option("variant", "oneshot", "of wanda: rows lose the same share of their scores (off)", **SWITCH),
        option("order", "oneshot", "of wanda+obs and magnitude+obs: sequential chooses the weights before any update, "
               "iterative block by block (sequential)"),
        option("block_size", "oneshot", "columns that sparsegpt compares and updates together (128)", type=int),
        option("format", "call", "dense: a plain checkpoint with zeros; for 2:4 also semi-structured (torch, on "
               "hardware that has it) or compressed-tensors (dense)", choices=_FORMATS),
    ),
    "calibration": (
        option("calibration_sequences", "oneshot", "rows of the data that are looked at (128)", type=int),
        option("max_length", "oneshot", "tokens of a row at most (2048, or the model's context)", type=int),
        option("seed", "oneshot", "of what is drawn from the data (42)", type=int),
        option("offload", "oneshot", "keep weights and hidden states in the machine's memory, and one block at a time "
               "on the accelerator (off)", **SWITCH),
    ),
    "what is measured and kept": (
        option("latency", "run", "measure the forward pass, dense and pruned, with --ratio (on)", **SWITCH),
        option("dtype", "run", "that the result is saved in: float32, bfloat16 or float16 (the checkpoint's)"),
        option("prompt", "run", "text that both models go on from, for the report"),
        option("report", "run", "write report.html and report.json (on)", **SWITCH),
        option("quiet", "call", "results only", **SWITCH),
    ),
}  # fmt: skip

ONESHOT_OPTIONS: dict[str, Option] = {item.name: item for group in _GROUPS.values() for item in group}


# The command.


_DESCRIPTION = """Prune a model on calibration data, without training.

With --ratio, heads and channels go and the model becomes smaller; with --sparsity, weights become zero."""
_EXAMPLES = """examples:
  loraprune oneshot MODEL --data DATA --ratio 0.2 -o OUT
  loraprune oneshot MODEL --data DATA --criterion sparsegpt --sparsity 2:4 -o OUT
  loraprune oneshot MODEL --criterion magnitude --sparsity 0.5 -o OUT
"""


def _build_parser() -> argparse.ArgumentParser:
    """The options of the command; nothing has a default."""
    parser = Parser(
        prog="loraprune oneshot",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="loraprune oneshot MODEL --data DATA (--ratio 0.5 | --sparsity 0.5) -o OUT [options]",
        allow_abbrev=False,
    )
    add_options(parser, _GROUPS)
    return parser


def oneshot_command(arguments: Sequence[str]) -> int:
    """Run the command."""
    arguments = [with_dashes(argument) for argument in arguments]
    parser = _build_parser()
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
        near = suggestion(str(error), ONESHOT_OPTIONS)
        raise ValueError(f"{error}{near} (loraprune oneshot --help lists the options)") from None
    recipe = read_recipe(given["config"]) if "config" in given else {}
    old = old_names(ONESHOT_OPTIONS.values())
    check_known(recipe, {*ONESHOT_OPTIONS, *old, "model"})
    given = with_new_names(given, old)
    amounts = ("ratio", "sparsity", "target_params")
    if any(name in given for name in amounts):
        recipe = {name: value for name, value in recipe.items() if name not in amounts}
    recipe = with_new_names({name: typed(name, value, parser) for name, value in recipe.items()}, old)
    values = recipe | given
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
    from loraprune.cli.progress import StepsProgress
    from loraprune.pruning.oneshot_config import OneshotConfig
    from loraprune.recipes.oneshot import oneshot
    from loraprune.tasks.options import RunOptions

    quiet_libraries()
    check_recipe_stays(values)
    if values.get("architecture") is not None:
        register(read_spec(values["architecture"]))
    chosen = fields_of(ONESHOT_OPTIONS, values, "oneshot")
    config = OneshotConfig(**chosen)
    options = RunOptions(
        **fields_of(ONESHOT_OPTIONS, values, "run"), command=shlex.join(["loraprune", "oneshot", *arguments])
    )
    form = values.get("format", "dense")
    _check_format(form, values["model"], config, options)
    with StepsProgress(console, quiet=bool(values.get("quiet"))) as progress:
        result = oneshot(
            values["model"],
            values.get("data"),
            config,
            tokenizer=values.get("tokenizer"),
            image_processor=values.get("image_processor"),
            options=options,
            progress=progress,
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
    from loraprune.record.replaceable import check_output

    if form == "dense":
        return
    if config.structured or str(config.pattern) != "2:4":
        raise ValueError(f"--format {form} is for --sparsity 2:4. Leave it out, or ask for that.")
    if form == "semi-structured":
        from loraprune.checkpoint.exports.semi_structured import check_semi_structured
        from loraprune.checkpoint.load import DTYPES, checkpoint_dtype, load_config

        check_semi_structured()
        checkpoint = load_config(model, trust_remote_code=options.trust_remote_code, revision=options.revision)
        check_semi_structured(dtype=DTYPES[options.dtype] if options.dtype else checkpoint_dtype(checkpoint))
    else:
        from loraprune.checkpoint.exports.compressed_tensors import check_package

        check_package()
    assert options.output is not None
    check_output(sparse_folder(options.output, form), overwrite=options.overwrite)


# What a finished run without training prints.


def sparsity_table(matrices: Sequence[MatrixRecord]) -> Table:
    """Zeros, error and time of each layer: of its matrices of a kind the least and the largest share of zeros."""
    with_error = any(matrix.error is not None for matrix in matrices)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    for head in ("layer", "zeros", "least", "most", *(["output error"] if with_error else []), "seconds"):
        table.add_column(head, justify="right", no_wrap=True)
    for layer in sorted({matrix.layer for matrix in matrices}):
        own = [matrix for matrix in matrices if matrix.layer == layer]
        zeros = sum(matrix.zeros for matrix in own) / sum(matrix.weights for matrix in own)
        shares = [matrix.sparsity for matrix in own]
        errors = [matrix.error for matrix in own if matrix.error is not None]
        middle = [percent(sum(errors) / len(errors)) if errors else ""] if with_error else []
        seconds = f"{sum(matrix.seconds for matrix in own):.2f}"
        table.add_row(str(layer), percent(zeros), percent(min(shares)), percent(max(shares)), *middle, seconds)
    return table


def show_oneshot_result(console: Console, result: OneshotResult) -> None:
    """Print the tables, the completions, what to know, and where things are."""
    show_report(console, result.report)
    if result.matrices:
        console.print(sparsity_table(result.matrices))
    show_end(console, result.report, result.output, result.model)
