"""``loraprune compare``: quality of several runs against parameters, latency and training time."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from loraprune.cli.console import open_console, report_errors, results_console
from loraprune.cli.parsing import Parser, help_shown, parsed
from loraprune.display.console import print_line
from loraprune.record.atomic import check_file, write_text

if TYPE_CHECKING:
    from rich.console import Console

    from loraprune.report.comparison.result import RunsComparison

NAMED_OTHERS = 8


def compare_parser() -> Parser:
    """Make the parser of the command."""
    parser = Parser(
        "loraprune compare",
        usage="loraprune compare RUN... [options]",
        description="Compare the quality of several runs with their parameters, latency and training time, and mark "
        "the runs that no other beats (the Pareto front). The figures come from the records of the runs and from "
        "results of loraprune eval and loraprune bench; --eval measures what is missing.",
        epilog="examples:\n  loraprune compare pruned-20 pruned-50 --eval wikitext2 -o comparison.html\n",
    )
    parser.add_argument("runs", nargs="*", metavar="RUN", help="folder of a run, or of a model in the result files")
    most = parser.add_argument_group("most used")
    most.add_argument("--evaluation", nargs="+", default=[], action="extend", type=Path, metavar="FILE",
                      help="results of loraprune eval; evaluation.json in a RUN is read without this")  # fmt: skip
    most.add_argument("--bench", nargs="+", default=[], action="extend", type=Path, metavar="FILE",
                      help="results of loraprune bench, used instead of the latencies in the records")  # fmt: skip
    most.add_argument("--eval", nargs="*", metavar="TEXT", help="measure perplexity of these texts for all runs alike, "
                      "and keep it in each RUN (default without a TEXT: wikitext2)")  # fmt: skip
    most.add_argument("--max-length", type=int, help="tokens in a segment of --eval (default: 2048, or the smallest "
                      "context)")  # fmt: skip
    most.add_argument("--limit", type=int, help="measure the first N segments of --eval only")
    most.add_argument("--quality", metavar="NAME", help="measure to compare, such as perplexity, accuracy, "
                      "wikitext2@2048 or piqa:acc_norm (default: the one that most runs share)")  # fmt: skip
    most.add_argument("--latency", metavar="NAME", help="latency to compare: recorded, or prefill, decoding or "
                      "decoding@8 of a benchmark (default: the one that most runs share)")  # fmt: skip
    most.add_argument("--names", nargs="+", metavar="NAME", help="names of the runs, in order (default: their folders)")
    most.add_argument("-o", "--output", type=Path, metavar="FILE.html", help="page with table and figure "
                      "(default: none)")  # fmt: skip
    most.add_argument("--picture", type=Path, metavar="FILE", help="the figure as .svg, .png or .pdf (default: none)")
    most.add_argument("--json", type=Path, metavar="FILE", help="everything as JSON (default: none)")
    most.add_argument("-q", "--quiet", action="store_true", help="print no hints")
    return parser


def compare_command(arguments: Sequence[str]) -> int:
    """Run the command."""
    parser = compare_parser()
    shown = help_shown(parser, arguments)
    if shown is not None:
        return shown
    console = open_console(quiet="-q" in arguments or "--quiet" in arguments)
    return report_errors(console, lambda: _run(_options(parser, arguments), arguments, console))


def _options(parser: Parser, arguments: Sequence[str]) -> argparse.Namespace:
    """Parse and check the options.

    Raises:
        ValueError: an option is unknown or has no value, or no run is named.
    """
    options = parsed(parser, arguments)
    if not options.runs:
        raise ValueError(
            "The run is missing. Name runs before the options: loraprune compare RUN... --evaluation FILE."
        )
    if options.eval is None and (options.max_length is not None or options.limit is not None):
        raise ValueError("--max-length and --limit need --eval. Add it, or leave them out.")
    return options


def _run(options: argparse.Namespace, arguments: Sequence[str], console: Console) -> int:
    import shlex

    from loraprune.report.comparison.compare import compare_runs

    _check_outputs(options)
    quality = options.quality
    if options.eval is not None:
        measured = _measured_alike(options, console)
        quality = quality or measured
    comparison = compare_runs(
        options.runs,
        evaluation=options.evaluation,
        bench=options.bench,
        quality=quality,
        latency=options.latency,
        names=options.names,
        command=shlex.join(["loraprune", "compare", *arguments]),
    )
    out = results_console()
    _show(out, comparison)
    if not options.quiet:
        _show_hints(out, comparison, options)
    _write(out, comparison, options)
    return 0


def _measured_alike(options: argparse.Namespace, console: Console) -> str:
    """Measure all runs and their dense models on the same texts, in segments of one length.

    Returns:
        The name of the first measure.
    """
    from loraprune.cli.console import begin
    from loraprune.display.steps import StepsProgress
    from loraprune.measure.evaluation.alike import evaluate_alike
    from loraprune.measure.evaluation.config import DEFAULT_TEXT, EvaluationConfig
    from loraprune.report.comparison.qualities import RESULTS_FILE

    begin("compare", *options.runs)
    config = EvaluationConfig(
        ppl=tuple(options.eval or (DEFAULT_TEXT,)), max_length=options.max_length, limit=options.limit
    )
    with StepsProgress(console, quiet=options.quiet, rates=True) as progress:
        return evaluate_alike(
            [Path(run) for run in options.runs],
            config,
            results_file=RESULTS_FILE,
            progress=progress,
        )


def _check_outputs(options: argparse.Namespace) -> None:
    """Check the output files before anything is read.

    Raises:
        ValueError: a name has a wrong suffix, or an existing file must not be replaced.
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
            raise ValueError(f"Two outputs have the same name, {path}. Give each its own file.")
    if options.output is not None:
        check_page(options.output)
    if options.picture is not None:
        check_picture(options.picture)


def _show(console: Console, comparison: RunsComparison) -> None:
    """Print a table for each group, the legend and the notes."""
    from loraprune.report.comparison import result
    from loraprune.report.comparison.page import runs_table

    several = len(comparison.groups) > 1
    for position, group in enumerate(comparison.groups, start=1):
        heading = f"Group {position}: {group.title}" if several else group.title
        detail = f" ({group.quality.detail})" if group.quality.detail else ""
        print_line(console, f"{heading}{detail}, {result.quality_direction(group.quality)}", "bold")
        console.print(runs_table(group))
        for note in group.notes:
            print_line(console, note, "yellow")
    legend = result.front_legend(comparison.groups)
    if legend:
        print_line(console, legend, "dim")
    for note in comparison.notes:
        print_line(console, note, "yellow")


def _show_hints(console: Console, comparison: RunsComparison, options: argparse.Namespace) -> None:
    if comparison.other_qualities:
        print_line(console, f"Other measures (--quality): {_others(comparison.other_qualities)}", "dim")
    if options.eval is None and comparison.notes and not any("--eval" in note for note in comparison.notes):
        print_line(console, "To measure all runs alike: add --eval", "dim")
    if options.output is None and options.picture is None:
        print_line(console, "A page with a picture: add -o comparison.html", "dim")


def _others(names: Sequence[str]) -> str:
    more = len(names) - NAMED_OTHERS
    return "; ".join(names[:NAMED_OTHERS]) + (f" and {more} more" if more > 0 else "")


def _write(console: Console, comparison: RunsComparison, options: argparse.Namespace) -> None:
    from loraprune.report.comparison.figure import write_picture
    from loraprune.report.comparison.page import write_page

    if options.json is not None:
        write_text(options.json, comparison.to_text())
        print_line(console, f"JSON: {options.json}", whole=True)
    if options.picture is not None:
        write_picture(comparison, options.picture)
        print_line(console, f"Picture: {options.picture}", whole=True)
    if options.output is not None:
        write_page(comparison, options.output)
        print_line(console, f"Page: {options.output}", whole=True)
