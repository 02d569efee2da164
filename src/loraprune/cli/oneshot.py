"""``loraprune oneshot``: pruning on calibration data, without training."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich import box
from rich.table import Table

from loraprune.checkpoint.names import check_no_preset
from loraprune.cli.console import (
    begin,
    check_pushed,
    open_console,
    report_errors,
    results_console,
    show_end,
    show_report,
)
from loraprune.cli.data_options import DATA_HELP, check_data, with_model
from loraprune.cli.declared import declared
from loraprune.cli.export import export_sparse, sparse_folder
from loraprune.cli.options import (
    Option,
    OptionGroups,
    add_options,
    by_name,
    fields_of,
    old_names,
    option,
    with_new_names,
)
from loraprune.cli.parsing import Parser, help_shown, parsed
from loraprune.cli.recipe_files import check_known, check_recipe_stays, read_recipe, typed
from loraprune.cli.shared_options import (
    AMOUNTS,
    CONFIG,
    FILES,
    HUB,
    MEASURED,
    PUSH,
    QUIET,
    RESUMING,
    data_option,
    goals,
    output_option,
    settle_amount,
)
from loraprune.processes.ranks import is_main
from loraprune.pruning.oneshot_config import OneshotConfig, SparseConfig
from loraprune.record.numbers import percent
from loraprune.tasks.options import RunOptions

if TYPE_CHECKING:
    from rich.console import Console

    from loraprune.recipes.oneshot import OneshotResult
    from loraprune.record.run_record import MatrixRecord


_FORMATS = ("dense", "semi-structured", "compressed-tensors")

_RATIO, _SPARSITY = OneshotConfig(ratio=0.5), SparseConfig()
_OLD = {"criterion": "method", "head_counts": "head_rounding"}


def _groups(*names: str, has_default: bool = True) -> tuple[Option, ...]:
    return declared(OneshotConfig, "oneshot", *names, usual=_RATIO, old=_OLD, has_default=has_default)


def _zeros(*names: str, has_default: bool = True) -> tuple[Option, ...]:
    return declared(SparseConfig, "oneshot", *names, usual=_SPARSITY, has_default=has_default)


_GROUPS: OptionGroups = {
    "most used": (
        data_option("calibration data"),
        output_option("pruned checkpoint"),
        *_groups("ratio", has_default=False),  # one of the two has to be given
        *_zeros("sparsity", has_default=False),
        *_groups("criterion", "repair", "calibration_sequences", "max_length"),
        CONFIG,
        *RESUMING,
    ),
    "instead of --ratio": (*_groups("widths"), *goals()),
    "with --ratio": _groups("dimensions", "keep_layers", "allocation", "cuts", "norm_steps"),
    "with --sparsity": (
        option(
            "format",
            "call",
            "file format; semi-structured (torch) and compressed-tensors (vLLM) need --sparsity 2:4 (default: dense)",
            choices=_FORMATS,
        ),
        *_zeros("within", "variant", "order", "block_size"),
    ),
    "data": (*FILES, *declared(RunOptions, "run", "bos"), *MEASURED),
    "run": _groups("offload", "seed"),
    "result": (
        *declared(RunOptions, "run", "latency", "dtype", "prompt", "report", "verify", "allow_bad_result"),
        *PUSH,
        QUIET,
    ),
    "model": HUB,
}

_RARE: OptionGroups = {
    "details of pruning": _groups(
        *("taylor_form", "group_reduction", "offload_grads", "channel_multiple", "head_counts", "damping")
    ),
}

ONESHOT_OPTIONS: dict[str, Option] = by_name(_GROUPS, _RARE)


# The command.


_DESCRIPTION = """Prune a model on calibration data, without training. --ratio removes heads and channels and makes the
model smaller; --sparsity sets single weights to zero. Pass one of them."""
_EXAMPLES = """examples:
  loraprune oneshot MODEL --data texts.jsonl --ratio 0.2 -o pruned
  loraprune oneshot MODEL --data texts.jsonl --sparsity 2:4 -o sparse
  loraprune oneshot MODEL --criterion magnitude --sparsity 0.5 -o sparse
"""


def oneshot_parser() -> Parser:
    """Make the parser of the command, without defaults."""
    parser = Parser(
        "loraprune oneshot",
        usage="loraprune oneshot MODEL --data DATA --ratio X -o OUT [options]",
        description=_DESCRIPTION,
        epilog=f"{DATA_HELP}\n{_EXAMPLES}",
    )
    add_options(parser, {**_GROUPS, **_RARE})
    parser.rare = set(_RARE)
    return parser


def oneshot_command(arguments: Sequence[str]) -> int:
    """Run the command."""
    parser = oneshot_parser()
    shown = help_shown(parser, arguments)
    if shown is not None:
        return shown
    console = open_console(quiet="-q" in arguments or "--quiet" in arguments)
    return report_errors(
        console,
        lambda: _run(_values(parser, arguments), console, arguments),
        less_memory="Use --offload, fewer --calibration-sequences or a smaller --max-length.",
    )


def _values(parser: Parser, arguments: Sequence[str]) -> dict[str, Any]:
    """Merge recipe and command line; the command line wins.

    Raises:
        ValueError: an option is unknown, or a required one is missing.
    """
    given = with_model(vars(parsed(parser, arguments)))
    recipe = read_recipe(given["config"], parser.prog) if "config" in given else {}
    old = old_names(ONESHOT_OPTIONS.values())
    check_known(recipe, {*ONESHOT_OPTIONS, *old, "model"})
    given = with_new_names(given, old)
    recipe = with_new_names({name: typed(name, value, parser, ONESHOT_OPTIONS) for name, value in recipe.items()}, old)
    values = recipe | given
    amount = settle_amount(values, given, (*AMOUNTS, "sparsity"))
    if amount not in (None, "ratio", "sparsity"):
        values["ratio"] = 0.5  # a placeholder: widths or goals decide
    for name, remedy in (
        ("model", "Name a checkpoint: loraprune oneshot MODEL --data DATA --ratio 0.5 -o OUT."),
        ("output", "Name the folder of the result with -o."),
    ):
        if values.get(name) is None:
            raise ValueError(f"The {name} is missing. {remedy}")
    return values


def _run(values: dict[str, Any], console: Console, arguments: Sequence[str]) -> int:
    config = OneshotConfig(**fields_of(ONESHOT_OPTIONS, values, "oneshot"))  # before anything large is imported
    options = RunOptions(
        **fields_of(ONESHOT_OPTIONS, values, "run"), command=shlex.join(["loraprune", "oneshot", *arguments])
    )
    check_recipe_stays(values)
    check_no_preset(values["model"])
    check_data(values)
    begin("oneshot", values["model"])
    from loraprune.architectures import read_spec, register
    from loraprune.recipes.oneshot import oneshot

    if values.get("architecture") is not None:
        register(read_spec(values["architecture"]))
    form = values.get("format", "dense")
    _check_format(form, values["model"], config, options)
    result = oneshot(
        values["model"],
        values.get("data"),
        config,
        tokenizer=values.get("tokenizer"),
        image_processor=values.get("image_processor"),
        options=options,
        verbosity="warnings" if values.get("quiet") else "progress",
    )
    show_oneshot_result(results_console(), result)
    if form != "dense" and is_main():
        assert options.output is not None
        export_sparse(options.output, form, overwrite=options.overwrite)
    check_pushed(result, options)
    return 0


def _check_format(form: str, model: str, config: OneshotConfig | SparseConfig, options: RunOptions) -> None:
    """Check, before any work, that the result can be written in the requested format.

    Raises:
        ValueError: the sparsity is not 2:4, or this machine or the installed packages do not support the format.
    """
    from loraprune.record.replaceable import check_output

    if form == "dense":
        return
    if not isinstance(config, SparseConfig) or str(config.pattern) != "2:4":
        raise ValueError(f"--format {form} needs --sparsity 2:4. Add it, or leave --format out.")
    if options.push_to_hub is not None:
        raise ValueError(
            f"--push-to-hub pushes the dense checkpoint, but --format is {form}. Leave --push-to-hub out, and push the "
            "folder of that format with loraprune push."
        )
    if form == "semi-structured":
        from loraprune.checkpoint.exports.semi_structured import check_semi_structured
        from loraprune.checkpoint.load import DTYPES
        from loraprune.checkpoint.source import ModelSource

        check_semi_structured()
        source = ModelSource.of(model, trust_remote_code=options.trust_remote_code, revision=options.revision)
        check_semi_structured(dtype=DTYPES[options.dtype] if options.dtype else source.stored_dtype)
    else:
        from loraprune.checkpoint.exports.compressed_tensors import check_package

        check_package()
    assert options.output is not None
    check_output(sparse_folder(options.output, form), overwrite=options.overwrite)


# Output of a finished run.


def sparsity_table(matrices: Sequence[MatrixRecord]) -> Table:
    """Return the table of zeros, least and most zeros in a matrix, error and time of each layer."""
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
    """Print the tables, the completions, the notes, and the paths of the result."""
    show_report(console, result.report)
    if result.matrices:
        console.print(sparsity_table(result.matrices))
    show_end(console, result)
