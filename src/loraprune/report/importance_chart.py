"""The chart of importance: how the scores of one kind of group are spread, kept and removed apart."""

from __future__ import annotations

from typing import TYPE_CHECKING

from loraprune.report import numbers, panel, scales, svg
from loraprune.report.histogram import Bin, histogram
from loraprune.report.panel import Panel

if TYPE_CHECKING:
    from collections.abc import Sequence

    from loraprune.report.data import Importance
    from loraprune.report.scales import Scale

_TOP = 10.0
_HEIGHT = 180.0
_ZERO_WIDTH = 60.0
_ZERO_NAME = "\N{ALMOST EQUAL TO} 0"


def importance_chart(dimensions: Sequence[Importance], width: float) -> str:
    """Draw how the scores of the groups of one kind are spread, removed groups stacked on the kept ones.

    Scores that a logarithmic axis cannot show stand in a bar of their own at the left.

    Args:
        dimensions: the prunable dimensions of one kind, at least one.
        width: width of the picture.
    """
    counted = histogram(dimensions)
    columns = [*([counted.zero] if counted.zero else []), *counted.bins]
    most = max([1, *(item.kept + item.removed for item in columns)])
    ticks = scales.ticks(0, most, 4, whole=True)
    area = Panel(left=panel.margin_for(ticks), right=width - panel.SIDE_MARGIN, top=_TOP, bottom=_TOP + _HEIGHT)
    y = area.y_scale(0, most)
    start = area.left
    parts: list[str] = []
    places: list[tuple[float, str]] = []
    if counted.zero:
        end = area.left + _ZERO_WIDTH if counted.bins else area.right
        center = (area.left + end) / 2 - (10 if counted.bins else 0)
        parts.append(_column(counted.zero, center - 12, 24, y))
        places.append((center, _ZERO_NAME))
        start = end
    if counted.bins:
        pitch = (area.right - start) / len(counted.bins)
        parts += [_column(item, start + index * pitch, pitch, y) for index, item in enumerate(counted.bins)]
        places += _score_ticks(counted.bins, start, area.right)
    return svg.picture(
        width,
        area.bottom + panel.AXIS_HEIGHT,
        _description(dimensions[0].kind, columns, counted.unknown),
        panel.horizontal_grid(area, y, ticks),
        *parts,
        panel.horizontal_axis(area, places, "importance score"),
    )


def _column(item: Bin, left: float, pitch: float, y: Scale) -> str:
    if not item.kept + item.removed:
        return ""
    gap = 1.0 if pitch >= 4 else 0.0
    floor, kept, total = y(0), y(item.kept), y(item.kept + item.removed)
    return svg.element(
        "g",
        svg.title(f"{_range(item)}: {item.kept:,} kept, {item.removed:,} removed"),
        svg.rectangle(left + gap / 2, total, pitch - gap, kept - total, "removed"),
        svg.rectangle(left + gap / 2, kept, pitch - gap, floor - kept, "kept"),
    )


def _range(item: Bin) -> str:
    if item.high == -float("inf"):
        return f"Score {_ZERO_NAME}"
    return f"Score {numbers.significant(10.0**item.low)} to {numbers.significant(10.0**item.high)}"


def _score_ticks(bins: Sequence[Bin], start: float, end: float) -> list[tuple[float, str]]:
    low, high = bins[0].low, bins[-1].high
    x = scales.Scale(low=low, high=high, start=start, end=end)
    return [(x(value), text) for value, text in scales.log_ticks(low, high, max(2, round((end - start) / 70)))]


def _description(kind: str, columns: Sequence[Bin], unknown: int) -> str:
    kept, removed = sum(item.kept for item in columns), sum(item.removed for item in columns)
    text = f"Importance scores of {kept + removed:,} {kind}, {kept:,} kept and {removed:,} removed."
    return f"{text} {unknown:,} more have no finite score." if unknown else text
