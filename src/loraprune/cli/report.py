"""``loraprune report``: a new report of a finished run, with later measurements."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from loraprune.cli.console import begin, open_console, report_errors, results_console
from loraprune.cli.parsing import Parser, help_shown, parsed
from loraprune.display.console import print_line

if TYPE_CHECKING:
    from rich.console import Console

    from loraprune.recipes.report import ReportAgain

_DESCRIPTION = """Make the report of a finished run again. Results of loraprune eval are added: evaluation.json in the
folder of the run, and the files that you name."""
_EXAMPLES = """examples:
  loraprune eval MODEL pruned --ppl wikitext2 --tasks piqa -o results.json
  loraprune report pruned --evaluation results.json
"""


def report_parser() -> Parser:
    """Make the parser of the command."""
    parser = Parser(
        "loraprune report",
        usage="loraprune report RUN [--evaluation FILE ...] [-o FILE.html] [options]",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
    )
    parser.add_argument("run", metavar="RUN", type=Path, help="folder of a run, or the report.json in it")
    most = parser.add_argument_group("most used")
    most.add_argument("--evaluation", metavar="FILE", type=Path, nargs="+", action="extend", default=[],
                      help="results of loraprune eval")  # fmt: skip
    most.add_argument("-o", "--output", type=Path, metavar="FILE.html", help="page to write (default: RUN/report.html)")
    most.add_argument("--open", action="store_true", help="open the page in the browser")
    most.add_argument("--card", action="store_true", help="also add the results to the model card, RUN/README.md")
    most.add_argument("-q", "--quiet", action="store_true", help="print results only")
    return parser


def report_command(arguments: Sequence[str]) -> int:
    """Run the command."""
    parser = report_parser()
    shown = help_shown(parser, arguments)
    if shown is not None:
        return shown
    console = open_console(quiet="-q" in arguments or "--quiet" in arguments)
    return report_errors(console, lambda: _run(parsed(parser, arguments)))


def _run(options: argparse.Namespace) -> int:
    begin("report", options.run)
    from loraprune.recipes.report import report_again

    made = report_again(options.run, options.evaluation, output=options.output, card=options.card)
    _show(results_console(), made)
    if options.open:
        import webbrowser

        webbrowser.open(made.page.resolve().as_uri())
    return 0


def _show(console: Console, made: ReportAgain) -> None:
    """Print the results of each model, and the path of the report."""
    for side, entries in ((made.data.before, made.entries.dense), (made.data.after, made.entries.pruned)):
        for model in dict.fromkeys(entry.model for entry in entries):
            labels = [entry.label for entry in entries if entry.model == model]
            text = f"{side + ':':9} {model} ({'; '.join(dict.fromkeys(labels))})"
            print_line(console, text, indent=10)
    print_line(console, f"Report:   {made.page}", whole=True)
    if made.card is not None:
        print_line(console, f"Card:     {made.card}", whole=True)
