"""Headline of a page: its first figures, and the result in one or two sentences."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from loraprune.record import numbers
from loraprune.record.report_data import Row, Unit
from loraprune.report import before_after

if TYPE_CHECKING:
    from collections.abc import Sequence

    from loraprune.record.report_data import ReportData

_UNITS = (Unit.PARAMETERS, Unit.BYTES, Unit.MILLISECONDS, Unit.PERPLEXITY, Unit.ACCURACY)
_MEANINGS = {
    Unit.PARAMETERS: ("Smaller", "Size", "Larger"),
    Unit.BYTES: ("Smaller", "Size", "Larger"),
    Unit.MILLISECONDS: ("Faster", "Speed", "Slower"),
    Unit.PERPLEXITY: ("Gained", "Quality", "What it cost"),
    Unit.ACCURACY: ("What it cost", "Quality", "Gained"),
}
"""Words for a figure that fell, stayed and rose."""


@dataclass(frozen=True, kw_only=True)
class Tile:
    """One figure of the headline: its change, with the values before and after.

    Attributes:
        meaning: a word or two for readers who do not know the measure: ``"Smaller"``.
        label: the measure.
        change: amount of the change.
        before: value before; ``after``: value after.
        detail: conditions of the measurement, or empty.
    """

    meaning: str = ""
    label: str
    change: str
    before: str
    after: str
    detail: str = ""


def tiles(data: ReportData) -> list[Tile]:
    """Choose the figures of the headline: one row each for size, speed and quality, if there is one.

    It is the first row of its unit that changed, else the first row. If no row has the parameters, they come from the
    data's headline.
    """
    headline = data.headline
    rows = [*data.rows]
    if not any(row.unit is Unit.PARAMETERS for row in rows):
        total = Row(label="Parameters", unit=Unit.PARAMETERS, dense=headline.total_before, pruned=headline.total_after)
        rows.insert(0, total)
    chosen = []
    for unit in _UNITS:
        found = [row for row in rows if row.unit is unit]
        chosen += [next((row for row in found if row.dense != row.pruned), *found[:1])] if found else []
    return [_tile(row, sparse=headline.sparsity is not None) for row in chosen]


def _tile(row: Row, sparse: bool) -> Tile:
    text = before_after.format_row(row)
    meaning = ""
    if text.change != numbers.MISSING and row.dense is not None and row.pruned is not None:
        fell, stayed, rose = _MEANINGS[row.unit]
        meaning = stayed if text.dense == text.pruned else fell if row.pruned < row.dense else rose
        if sparse and row.unit is Unit.PARAMETERS and meaning == fell:
            meaning = "Sparser"  # zeros are stored like other weights
    return Tile(
        meaning=meaning, label=text.label, change=text.change, before=text.dense, after=text.pruned, detail=text.detail
    )


# The result of a run in one or two sentences: smaller, faster, and the loss of quality.

_SPEED = (Unit.MILLISECONDS, Unit.TOKENS_PER_SECOND)
_QUALITY = (Unit.PERPLEXITY, Unit.ACCURACY, Unit.LOSS)
_SLOWER = " slower"


def verdict(data: ReportData) -> str:
    """Summarize the measured result; empty if nothing was measured."""
    quality = _first(data.rows, _QUALITY)
    cost = _quality(quality) if quality is not None else ""
    if data.recovery is not None:
        return cost[:1].upper() + cost[1:]
    speed = _speed(_first(data.rows, _SPEED))
    facts = [fact for fact in (_size(data), speed) if fact]
    if not facts and not cost:
        return ""
    if not facts:
        return f"The {cost}"
    joint = " but " if speed.endswith(_SLOWER) else " and "
    return f"The {data.after} model {joint.join(facts)}." + (f" Its {cost}" if cost else "")


def _first(rows: Sequence[Row], units: Sequence[Unit]) -> Row | None:
    """Return the first row with both figures, of the first unit that has one."""
    known = (row for unit in units for row in rows if row.unit is unit)
    return next((row for row in known if numbers.is_number(row.dense) and numbers.is_number(row.pruned)), None)


def _size(data: ReportData) -> str:
    headline = data.headline
    if headline.sparsity is not None:
        share = numbers.percent(headline.ratio)
        return f"has zeros for {share} of the weights of its linear layers" if numbers.is_number(headline.ratio) else ""
    gone = 1 - headline.total_after / headline.total_before if headline.total_before else 0.0
    return f"has {numbers.percent(gone)} fewer parameters" if gone > 0 else ""


def _speed(row: Row | None) -> str:
    change = before_after.change(row.dense, row.pruned, row.unit) if row is not None else numbers.MISSING
    if change == numbers.MISSING:
        return ""
    return "is as fast as before" if change == before_after.UNCHANGED else f"is {change}"


def _quality(row: Row) -> str:
    before, after = row.dense or 0.0, row.pruned or 0.0
    shown = before_after.format_row(row)
    label = row.label[:1].lower() + row.label[1:]
    if shown.dense == shown.pruned:
        return f"{label} stays at {shown.pruned}."
    way = "rises" if after > before else "falls"
    better = "" if row.unit is Unit.ACCURACY else "; lower is better"
    return f"{label} {way} from {shown.dense} to {shown.pruned} ({shown.change}{better})."
