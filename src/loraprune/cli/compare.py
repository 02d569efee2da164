"""``loraprune compare``: quality of several runs against parameters, latency and training time."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from loraprune.cli.console import open_console, report_errors, results_console
from loraprune.cli.parsing import Parser, parsed
from loraprune.record.atomic import check_file, write_text

if TYPE_CHECKING:
    from rich.console import Console

    from loraprune.report.comparison.result import RunsComparison

NAMED_OTHERS = 8


def compare_parser() -> Parser:
    """The options of the command."""
    parser = Parser(
        prog="loraprune compare",
        allow_abbrev=False,
        usage="loraprune compare RUN… [options]",
        description="Hold the quality of several runs against their parameters, latency and training time, and mark "
        "what no other run beats (the Pareto front). Nothing is measured: the figures are those of the runs' own "
        "records, and of files of `loraprune eval` and `loraprune bench`. Figures that do not compare are kept apart.",
    )
    parser.add_argument(
        "runs", nargs="*", metavar="RUN", help="folder that prune, oneshot or recover wrote, or of a model in the files"
    )
    parser.add_argument(
        "--evaluation", nargs="+", default=[], action="extend", type=Path, metavar="FILE",
        help="results of loraprune eval; evaluation.json in a RUN is read unasked",
    )  # fmt: skip
    parser.add_argument(
        "--bench", nargs="+", default=[], action="extend", type=Path, metavar="FILE",
        help="results of loraprune bench, used in place of the latencies in the records",
    )  # fmt: skip
    parser.add_argument(
        "--quality", metavar="NAME",
        help="measure, such as perplexity, accuracy, wikitext2@2048 or piqa:acc_norm (the one that most runs share)",
    )  # fmt: skip
    parser.add_argument(
        "--latency", metavar="NAME",
        help="what was timed: recorded, or prefill, decoding, decoding@8 of a benchmark (what is known of most runs)",
    )  # fmt: skip
    parser.add_argument("--names", nargs="+", metavar="NAME", help="what the runs are called, in order (their folders)")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE.html", help="page with table and picture (none)")
    parser.add_argument("--picture", type=Path, metavar="FILE", help="the picture alone: .svg, .png or .pdf (none)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="everything as JSON (none)")
    parser.add_argument("-q", "--quiet", action="store_true", help="no hints, only table and notes")
    return parser


def compare_command(arguments: Sequence[str]) -> int:
    """Run the command."""
    if not arguments or "-h" in arguments or "--help" in arguments:
        compare_parser().print_help() if arguments else compare_parser().print_usage(sys.stderr)
        return 0 if arguments else 2
    console = open_console(quiet="-q" in arguments or "--quiet" in arguments)
    return report_errors(console, lambda: _run(_options(arguments), arguments))


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    """What was given.

    Raises:
        ValueError: an option is unknown or misses its value, or no run is named.
    """
    options = parsed(compare_parser(), arguments)
    if not options.runs:
        raise ValueError("No run was given. Name runs before the options: loraprune compare RUN… --evaluation FILE.")
    return options


def _run(options: argparse.Namespace, arguments: Sequence[str]) -> int:
    import shlex

    from loraprune.report.comparison.compare import compare_runs

    _check_outputs(options)
    comparison = compare_runs(
        options.runs,
        evaluation=options.evaluation,
        bench=options.bench,
        quality=options.quality,
        latency=options.latency,
        names=options.names,
        command=shlex.join(["loraprune", "compare", *arguments]),
    )
    console = results_console()
    _show(console, comparison)
    if not options.quiet:
        _show_hints(console, comparison, options)
    _write(console, comparison, options)
    return 0


def _check_outputs(options: argparse.Namespace) -> None:
    """Refuse what cannot be written before anything is read.

    Raises:
        ValueError: a name has a wrong suffix, or what is there is not to be replaced.
    """
    from loraprune.report.comparison.page import check_page
    from loraprune.report.page import HEAD_OF_PAGES
    from loraprune.report.picture_files import check_picture

    outputs = [path for path in (options.output, options.picture, options.json) if path is not None]
    for path, holds in (
        (options.output, HEAD_OF_PAGES),
        (options.picture, b"atplotlib"),
        (options.json, b'"format": "loraprune-'),
    ):
        if path is not None:
            check_file(
                path,
                example="comparison.html",
                what="comparison",
                holds=holds,
                inputs=(*options.evaluation, *options.bench),
            )
    places = [path.resolve() for path in outputs]
    for path, place in zip(outputs, places, strict=True):
        if places.count(place) > 1:
            raise ValueError(f"Two outputs have the same name, {path}. Name a file for each.")
    if options.output is not None:
        check_page(options.output)
    if options.picture is not None:
        check_picture(options.picture)


def _show(console: Console, comparison: RunsComparison) -> None:
    """Print a table for each group, what the stars mean, and what to know."""
    from loraprune.report.comparison import result
    from loraprune.report.comparison.page import runs_table

    several = len(comparison.groups) > 1
    for position, group in enumerate(comparison.groups, start=1):
        heading = f"Group {position}: {group.title}" if several else group.title
        detail = f" ({group.quality.detail})" if group.quality.detail else ""
        _line(console, f"{heading}{detail}, {result.quality_direction(group.quality)}", style="bold")
        console.print(runs_table(group))
        for note in group.notes:
            _line(console, note, style="yellow")
    legend = result.front_legend(comparison.groups)
    if legend:
        _line(console, legend, style="dim")
    for note in comparison.notes:
        _line(console, note, style="yellow")


def _show_hints(console: Console, comparison: RunsComparison, options: argparse.Namespace) -> None:
    if comparison.other_qualities:
        _line(console, f"Other measures (--quality): {_others(comparison.other_qualities)}", style="dim")
    if options.output is None and options.picture is None:
        _line(console, "A page with a picture: add -o comparison.html", style="dim")


def _others(names: Sequence[str]) -> str:
    more = len(names) - NAMED_OTHERS
    return "; ".join(names[:NAMED_OTHERS]) + (f" and {more} more" if more > 0 else "")


def _write(console: Console, comparison: RunsComparison, options: argparse.Namespace) -> None:
    from loraprune.report.comparison.figure import write_picture
    from loraprune.report.comparison.page import write_page

    if options.json is not None:
        write_text(options.json, comparison.to_text())
        _line(console, f"JSON: {options.json}")
    if options.picture is not None:
        write_picture(comparison, options.picture)
        _line(console, f"Picture: {options.picture}")
    if options.output is not None:
        write_page(comparison, options.output)
        _line(console, f"Page: {options.output}")


def _line(console: Console, text: str, style: str | None = None) -> None:
    console.print(text, style=style, highlight=False, markup=False)
