"""The comparison of dense and pruned model as a table for the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich import box
from rich.table import Table
from rich.text import Text

from loraprune.report import before_after

if TYPE_CHECKING:
    from loraprune.record.report_data import ReportData


def comparison_table(data: ReportData) -> Table:
    """Build the table of measures before and after; without colors where the output is no terminal.

    The column of the model without recovery is left out where nothing of it was measured. How a row was measured
    stands in a second line under its label.
    """
    unrecovered = before_after.has_unrecovered(data)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    table.add_column("", overflow="fold")
    table.add_column(data.before, justify="right", no_wrap=True)
    if unrecovered:
        table.add_column("without recovery", justify="right")
    table.add_column(data.after, justify="right", no_wrap=True, style="bold")
    table.add_column("change", justify="right", no_wrap=True)
    for row in before_after.format_rows(data):
        label = Text(row.label)
        if row.detail:
            label.append(f"\n{row.detail}", style="dim")
        middle = [row.unrecovered] if unrecovered else []
        table.add_row(label, *(Text(cell) for cell in (row.dense, *middle, row.pruned, row.change)))
    return table
