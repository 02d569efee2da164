"""``loraprune report``: make the report of a finished run again, with what was measured of it since."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from loraprune.cli.console import open_console, quiet_libraries, report_errors, results_console
from loraprune.cli.terminal import CommandParser

if TYPE_CHECKING:
    from rich.console import Console

    from loraprune.recipes.report import ReportAgain

_DESCRIPTION = """Make the report of a finished run again, and add what `loraprune eval` measured of the run and of the
model that it began with. evaluation.json in the folder of the run counts by itself."""
_EXAMPLES = """examples:
  loraprune eval MODEL OUT --ppl wikitext2 --tasks piqa -o results.json
  loraprune report OUT --evaluation results.json
"""


def _parser() -> argparse.ArgumentParser:
    """The options of the command."""
    parser = CommandParser(
        prog="loraprune report",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="loraprune report RUN [--evaluation FILE ...] [-o FILE.html] [options]",
    )
    parser.add_argument("run", metavar="RUN", type=Path, help="folder that a run wrote, or the report.json in it")
    parser.add_argument("--evaluation", metavar="FILE", type=Path, nargs="+", action="extend", default=[],
                        help="results of loraprune eval")  # fmt: skip
    parser.add_argument("-o", "--output", type=Path, metavar="FILE.html", help="the page (default: RUN/report.html)")
    parser.add_argument("--card", action="store_true", help="also put the results into the table of RUN/README.md")
    parser.add_argument("--open", action="store_true", help="open the page in the browser")
    parser.add_argument("-q", "--quiet", action="store_true", help="results only")
    return parser


def report_command(arguments: Sequence[str]) -> int:
    """Run the command."""
    options = _parser().parse_args(arguments)
    console = open_console(quiet=options.quiet)
    return report_errors(console, lambda: _run(options))


def _run(options: argparse.Namespace) -> int:
    quiet_libraries()
    from loraprune.recipes.report import report_again

    made = report_again(options.run, options.evaluation, output=options.output, card=options.card)
    _show(results_console(), made)
    if options.open:
        import webbrowser

        webbrowser.open(made.page.resolve().as_uri())
    return 0


def _show(console: Console, made: ReportAgain) -> None:
    """Print which results belong to which model, and where the report is."""
    for side, entries in ((made.data.before, made.entries.dense), (made.data.after, made.entries.pruned)):
        for model in dict.fromkeys(entry.model for entry in entries):
            labels = [entry.label for entry in entries if entry.model == model]
            text = f"{side + ':':9} {model} ({'; '.join(dict.fromkeys(labels))})"
            console.print(text, highlight=False, markup=False, soft_wrap=True)
    console.print(f"Report:   {made.page}", highlight=False, markup=False, soft_wrap=True)
    if made.card is not None:
        console.print(f"Card:     {made.card}", highlight=False, markup=False, soft_wrap=True)
