"""The table in the terminal has what the page has, and is plain where there is no terminal."""

from __future__ import annotations

from dataclasses import replace
from io import StringIO
from typing import TYPE_CHECKING

from rich.console import Console
from tests.sample_reports import recovered_report

from loraprune.record.report_data import Row, Unit
from loraprune.report.before_after import comparison_table

if TYPE_CHECKING:
    from loraprune.record.report_data import ReportData

TIMES = "\N{MULTIPLICATION SIGN}"


def printed(data: ReportData, width: int = 100, **options: bool) -> str:
    """Print the table as a program that is not run in a terminal sees it."""
    console = Console(file=StringIO(), width=width, **options)  # type: ignore[arg-type]
    console.print(comparison_table(data))
    assert isinstance(console.file, StringIO)
    return console.file.getvalue()


def test_the_table_has_a_line_for_every_row(sample: ReportData) -> None:
    lines = printed(sample).splitlines()
    assert lines[1].split() == ["dense", "without", "recovery", "pruned", "change"]
    perplexity = next(line for line in lines if "Perplexity" in line)
    assert perplexity.split() == ["Perplexity", "4.09", "109", "6.42", "+57.0", "%"]
    assert any("held-out stories" in line for line in lines)


def test_the_table_omits_the_middle_column_where_it_is_empty(sample: ReportData) -> None:
    rows = tuple(replace(row, unrecovered=None) for row in sample.rows)
    assert "without recovery" not in printed(replace(sample, rows=rows))


def test_the_table_is_plain_outside_a_terminal_and_styled_inside(sample: ReportData) -> None:
    assert "\x1b" not in printed(sample)
    assert "\x1b" in printed(sample, force_terminal=True)


def test_the_table_takes_labels_literally(sample: ReportData) -> None:
    row = Row(label="[red]x[/red]", detail="[/]", unit=Unit.PERPLEXITY, dense=1.0, pruned=1.0)
    text = printed(replace(sample, rows=(row,)))
    assert "[red]x[/red]" in text
    assert "[/]" in text


def test_numbers_are_whole_in_a_narrow_terminal(sample: ReportData) -> None:
    text = printed(sample, width=80)
    for number in ("61.7 ms", "38.2 ms", f"1.62{TIMES} faster", "\N{MINUS SIGN}43.3 %"):
        assert number in text


def test_the_columns_have_the_names_that_the_report_gives_them() -> None:
    text = printed(recovered_report())
    assert text.splitlines()[1].split() == ["before", "after", "change"]
    assert "pruned" not in text
