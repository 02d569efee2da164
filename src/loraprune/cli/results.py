"""What a finished run prints."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.text import Text

from loraprune.report.terminal import comparison_table
from loraprune.runtimes.overview import runtimes_of

if TYPE_CHECKING:
    from rich.console import Console

    from loraprune.recipes.joint import PruneResult


def show_result(console: Console, result: PruneResult) -> None:
    """Print the table, the completions, what to know, and where things are."""
    console.print(comparison_table(result.report))
    for completion in result.report.completions:
        for label, text in (
            ("prompt", completion.prompt),
            ("dense", completion.dense),
            ("without recovery", completion.unrecovered),
            ("pruned", completion.pruned),
        ):
            if text is not None:
                console.print(Text(label, style="bold"))
                console.print(Text("\n".join("  " + line for line in text.rstrip().splitlines()) + "\n"))
    for note in result.report.notes:
        console.print(Text(note, style="yellow"))
    if result.output is not None:
        console.print(f"Checkpoint: {result.output}", highlight=False, markup=False, soft_wrap=True)
        report = result.output / "report.html"
        if report.is_file():
            console.print(f"Report:     {report}", highlight=False, markup=False, soft_wrap=True)
        for position, runtime in enumerate(runtimes_of(result.model)):
            label = "" if position else "Loads in:"
            console.print(f"{label:11} {runtime}", highlight=False, markup=False, soft_wrap=True)
