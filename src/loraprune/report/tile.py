"""The figures that a page begins with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from loraprune.record import numbers
from loraprune.record.report_data import Row, Unit
from loraprune.report import before_after

if TYPE_CHECKING:
    from loraprune.record.report_data import ReportData

_UNITS = (Unit.PARAMETERS, Unit.BYTES, Unit.MILLISECONDS, Unit.PERPLEXITY, Unit.ACCURACY)
_MEANINGS = {
    Unit.PARAMETERS: ("Smaller", "Size", "Larger"),
    Unit.BYTES: ("Smaller", "Size", "Larger"),
    Unit.MILLISECONDS: ("Faster", "Speed", "Slower"),
    Unit.PERPLEXITY: ("Gained", "Quality", "What it cost"),
    Unit.ACCURACY: ("What it cost", "Quality", "Gained"),
}
"""What it means that a figure fell, stayed and rose."""


@dataclass(frozen=True, kw_only=True)
class Tile:
    """One figure of the headline: what changed, by how much, from what to what.

    Attributes:
        meaning: in a word or two, for somebody who does not know the measure: ``"Smaller"``.
        label: the measure.
        change: by how much.
        before: its value before; ``after``: its value after.
        detail: how it was measured, or empty.
    """

    meaning: str = ""
    label: str
    change: str
    before: str
    after: str
    detail: str = ""


def tiles(data: ReportData) -> list[Tile]:
    """Choose the figures of the headline: a row each of size, speed and quality, where there is one.

    It is the first row of its unit that changed, or the first. Parameters are taken from the headline where no row
    has them.
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
