"""Comparison of the dense and the pruned model: rows as text, the summary sentence, and the table in the terminal."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich import box
from rich.table import Table
from rich.text import Text

from loraprune.record import numbers
from loraprune.record.report_data import Recovery, ReportData, Row, Unit

if TYPE_CHECKING:
    from collections.abc import Callable

    from loraprune.record.run_record import RunMetrics

_FORMATS: dict[Unit, Callable[[float | None], str]] = {
    Unit.PARAMETERS: numbers.count,
    Unit.BYTES: numbers.file_size,
    Unit.PERPLEXITY: numbers.significant,
    Unit.LOSS: numbers.significant,
    Unit.BITS_PER_BYTE: numbers.significant,
    Unit.MILLISECONDS: numbers.milliseconds,
    Unit.TOKENS_PER_SECOND: numbers.count,
    Unit.ACCURACY: numbers.percent,
}
UNCHANGED = "unchanged"
WHY_NAN = "The model gave NaN or infinite logits there."


@dataclass(frozen=True, kw_only=True)
class FormattedRow:
    """A row of the comparison as text; ``change`` compares pruned with dense."""

    label: str
    detail: str
    dense: str
    unrecovered: str
    pruned: str
    change: str


def format_row(row: Row) -> FormattedRow:
    """Format the numbers of a row in its unit."""
    show = _FORMATS[row.unit]
    return FormattedRow(
        label=row.label,
        detail=row.detail,
        dense=show(row.dense),
        unrecovered=show(row.unrecovered),
        pruned=show(row.pruned),
        change=change(row.dense, row.pruned, row.unit),
    )


def format_rows(data: ReportData) -> list[FormattedRow]:
    """Format the numbers of all rows."""
    return [format_row(row) for row in data.rows]


def has_unrecovered(data: ReportData) -> bool:
    """Tell whether any row has a value for the model pruned without recovery."""
    return any(row.unrecovered is not None for row in data.rows)


def change(before: float | None, after: float | None, unit: Unit) -> str:
    """Describe the change from ``before`` to ``after``.

    Times and rates are compared as a factor (1.61 times faster), and accuracies by difference in percentage points.
    Everything else is compared in percent, or as a factor if it at least doubled.
    """
    if before is None or after is None or not (numbers.is_number(before) and numbers.is_number(after)):
        return numbers.MISSING
    if unit is Unit.ACCURACY:
        points = numbers.percent(after - before, signed=True)
        return points.replace("%", "points")
    if before <= 0 or after <= 0:
        return numbers.MISSING
    if unit in (Unit.MILLISECONDS, Unit.TOKENS_PER_SECOND):
        return _speed(before / after if unit is Unit.MILLISECONDS else after / before)
    if after >= 2 * before:
        return numbers.times(after / before)
    return UNCHANGED if after == before else numbers.percent(after / before - 1, signed=True)


def _speed(factor: float) -> str:
    if abs(factor - 1) < 0.005:
        return UNCHANGED
    return f"{numbers.times(factor)} faster" if factor > 1 else f"{numbers.times(1 / factor)} slower"


def summary(data: ReportData) -> str:
    """Summarize the run in one sentence: how much was removed, in how many cuts and steps, and how long it took."""
    if data.recovery is not None:
        return f"Tuned{_training(data)}{_zeros(data.recovery)}."
    headline = data.headline
    if headline.sparsity is not None:
        share = numbers.percent(headline.ratio)
        if data.history:
            return f"{share} of the weights that LoRA adapted set to zero ({headline.sparsity}),{_training(data)}."
        sentence = f"{share} of the weights of the blocks' linear layers set to zero ({headline.sparsity})"
        return f"{sentence}, without training."
    sentence = f"{numbers.percent(headline.ratio)} of the prunable parameters removed"
    if numbers.is_number(headline.target_ratio):
        sentence += f" (target {numbers.percent(headline.target_ratio)})"
    if data.cuts:
        sentence += ", in one cut" if len(data.cuts) == 1 else f", in {len(data.cuts)} cuts"
    if not data.history:
        return f"{sentence}, without training."
    return f"{sentence},{_training(data)}."


def _training(data: ReportData) -> str:
    if not data.history:
        return ""
    last = data.history[-1]
    made = last.step if data.steps is None else data.steps
    steps = f"{made:,} training step" + ("s" if made != 1 else "")
    taken = f" ({numbers.duration(last.seconds)})" if numbers.is_number(last.seconds) else ""
    return f" over {steps}{taken}"


def _zeros(recovery: Recovery) -> str:
    before, after = recovery.zeros_before, recovery.zeros_after
    if before is None or after is None:
        return ""
    weights = f"{numbers.percent(before)} of the weights of the blocks' linear layers were zero"
    return f"; {weights} and still are" if after >= before else f"; {weights}, {numbers.percent(after)} are now"


def notes_on_nan(metrics: RunMetrics, before: str, after: str) -> tuple[str, ...]:
    """For each model whose loss was not finite, report the number of affected held-out segments.

    Args:
        metrics: metrics of the run.
        before: name for the model before the run.
        after: name for the result.
    """
    named = ((before, metrics.dense), ("unrecovered pruned", metrics.unrecovered), (after, metrics.pruned))
    return tuple(
        f"The loss of the {name} model is not finite on {measures.num_not_finite:,} of {measures.num_segments:,} "
        f"held-out segments, so its perplexity is not a number. {WHY_NAN}"
        for name, measures in named
        if measures is not None and measures.num_not_finite and measures.num_segments
    )


def comparison_table(data: ReportData) -> Table:
    """Build the table of measures before and after, without colors if the output is not a terminal.

    The column of the model without recovery is omitted if it has no value. The conditions of a measure are on a second
    line under its label.
    """
    unrecovered = has_unrecovered(data)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    table.add_column("", overflow="fold")
    table.add_column(data.before, justify="right", no_wrap=True)
    if unrecovered:
        table.add_column("without recovery", justify="right")
    table.add_column(data.after, justify="right", no_wrap=True, style="bold")
    table.add_column("change", justify="right", no_wrap=True)
    for row in format_rows(data):
        label = Text(row.label)
        if row.detail:
            label.append(f"\n{row.detail}", style="dim")
        middle = [row.unrecovered] if unrecovered else []
        table.add_row(label, *(Text(cell) for cell in (row.dense, *middle, row.pruned, row.change)))
    return table
