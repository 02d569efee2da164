"""What a finished run prints."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.text import Text

from loraprune.checkpoint.exports.overview import runtimes_of
from loraprune.report.terminal import comparison_table

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import Console
    from transformers import PreTrainedModel

    from loraprune.recipes.prune import PruneResult
    from loraprune.record.report_data import ReportData


def show_result(console: Console, result: PruneResult) -> None:
    """Print the table, the completions, what to know, and where things are."""
    show_report(console, result.report)
    show_end(console, result.report, result.output, result.model)


def show_report(console: Console, report: ReportData) -> None:
    """Print the table and the completions."""
    console.print(comparison_table(report))
    for completion in report.completions:
        for label, text in (
            ("prompt", completion.prompt),
            (report.before, completion.dense),
            ("without recovery", completion.unrecovered),
            (report.after, completion.pruned),
        ):
            if text is not None:
                console.print(Text(label, style="bold"))
                console.print(Text("\n".join("  " + line for line in text.rstrip().splitlines()) + "\n"))


def show_end(console: Console, report: ReportData, output: Path | None, model: PreTrainedModel) -> None:
    """Print what to know, and where things are."""
    for note in report.notes:
        console.print(Text(note, style="yellow"))
    if output is not None:
        console.print(f"Checkpoint: {output}", highlight=False, markup=False, soft_wrap=True)
        page = output / "report.html"
        if page.is_file():
            console.print(f"Report:     {page}", highlight=False, markup=False, soft_wrap=True)
        for position, runtime in enumerate(runtimes_of(model)):
            label = "" if position else "Loads in:"
            console.print(f"{label:11} {runtime}", highlight=False, markup=False, soft_wrap=True)
