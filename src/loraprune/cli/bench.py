"""``loraprune bench``: how fast models are, in turns, and what memory and operations they take."""

from __future__ import annotations

import argparse
import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loraprune.cli.bench_options import OPTIONS, add_bench_options
from loraprune.cli.console import open_console, quiet_libraries, report_errors, results_console
from loraprune.cli.options import fields_of
from loraprune.cli.recipes import ArgumentError, Parser, suggestion, with_dashes

if TYPE_CHECKING:
    from rich.console import Console

DESCRIPTION = """Measure prefill and decoding (or, with --profile training, a training step) of one or several models
that are loaded at once and take turns, so that their ratios are fair on a noisy machine. Adapters are measured unmerged
and merged. Random input; nothing is downloaded but models."""

EXAMPLES = """examples:
  loraprune bench DENSE PRUNED -o bench.json
  loraprune bench PRUNED --against-base
  loraprune bench DENSE --profile training --criteria fisher,lora --tokens 512
"""


def parser(kind: type[argparse.ArgumentParser] = argparse.ArgumentParser) -> argparse.ArgumentParser:
    """The options of the command."""
    made = kind(
        prog="loraprune bench",
        usage="loraprune bench MODEL... [options]",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add_bench_options(made)
    return made


def main(arguments: Sequence[str]) -> int:
    """Run the command."""
    arguments = [with_dashes(argument) for argument in arguments]
    if not arguments or "-h" in arguments or "--help" in arguments:
        parser().print_help() if arguments else parser().print_usage()
        return 0 if arguments else 2
    console = open_console(quiet="-q" in arguments or "--quiet" in arguments)
    return report_errors(console, lambda: _run(arguments, console))


def _values(arguments: Sequence[str]) -> dict[str, Any]:
    """The given options.

    Raises:
        ValueError: one is unknown (the nearest known one is suggested) or wrong, or no model was given.
    """
    try:
        values = vars(parser(Parser).parse_args(arguments))
    except ArgumentError as error:
        near = suggestion(str(error), OPTIONS)
        raise ValueError(f"{error}{near} (loraprune bench --help lists the options)") from None
    if not values["models"]:
        raise ValueError("No model was given. Name one or several: loraprune bench DENSE PRUNED.")
    if values.get("decoding") is False:
        if "decode_batch" in values:
            raise ValueError("--no-decoding and --decode-batch contradict each other. Leave one of them out.")
        values["decode_batch"] = ()
    if values.get("output") is not None:
        _check_output(values["output"])
    return values


def _check_output(output: Path) -> None:
    """Make sure that the file can be written, before anything is measured.

    Raises:
        ValueError: it is a folder, in no folder, or something else than an earlier benchmark.
    """
    if output.is_dir():
        raise ValueError(f"The output {output} is a folder. Name a file, such as {output / 'bench.json'}.")
    standing = next(folder for folder in output.absolute().parents if folder.exists())
    if not standing.is_dir() or not os.access(standing, os.W_OK):
        raise ValueError(f"The output {output} cannot be written: {standing} is no folder that you can write to.")
    if output.exists() and b"loraprune-bench" not in output.read_bytes()[:200]:
        raise ValueError(f"The output {output} exists and is no benchmark. Name another file.")


def _run(arguments: Sequence[str], console: Console) -> int:
    values = _values(arguments)

    from loraprune.cli.bench_progress import BenchProgress
    from loraprune.cli.bench_tables import show
    from loraprune.measure.benchmark.bench import bench
    from loraprune.measure.benchmark.config import BenchConfig
    from loraprune.record.atomic import write_text

    quiet_libraries()
    config = BenchConfig(**fields_of(OPTIONS, values, "bench"))
    progress = BenchProgress(console, quiet=bool(values.get("quiet")))
    command = shlex.join(["loraprune", "bench", *arguments])
    try:
        result = bench(values["models"], config, command=command, progress=progress)
    finally:
        progress.close()
    results = results_console()
    if values.get("output") is not None:
        write_text(values["output"], result.to_text())  # before anything is printed, which may fail
    show(results, result)
    if values.get("output") is not None:
        results.print(f"Figures: {values['output']}", highlight=False, markup=False, soft_wrap=True)
    return 0
