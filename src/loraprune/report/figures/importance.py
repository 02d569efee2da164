"""Figure of importance: distribution of the scores of one kind of group, for kept and removed groups."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from loraprune.record import numbers
from loraprune.report import drawing
from loraprune.report.drawing import ACCENT, CUT, REMOVED, Zone
from loraprune.report.figure import HALF_WIDTH, KEPT_AND_REMOVED, Figure, capitalized, kind_in_words
from loraprune.report.figures.series import Bin, Histogram, histogram

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes

    from loraprune.record.report_data import Importance

_HEIGHT = 230.0
_ZERO_NAME = "\N{ALMOST EQUAL TO} 0"
_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def importance_figure(dimensions: Sequence[Importance]) -> Figure:
    """Draw the scores of the groups of one kind, with removed groups stacked on kept ones.

    Args:
        dimensions: prunable dimensions of one kind, at least one.
    """
    kind, counted = kind_in_words(dimensions[0].kind), histogram(dimensions)
    caption = (
        "The further apart the two colors are, the clearer the choice. Removed groups have the score of the cut that "
        "removed them. Colors overlap where layers, or cuts, were not compared with each other."
    )
    if counted.unknown:
        caption += f" Groups without a finite score are not shown: {counted.unknown:,}."
    markup = _picture(kind, counted)
    return Figure(title=f"Importance of {kind}", markup=markup, caption=caption, legend=KEPT_AND_REMOVED)


def _picture(kind: str, counted: Histogram) -> str:
    with drawing.drawing(HALF_WIDTH, _HEIGHT) as canvas:
        shares = ([0.12] if counted.zero else []) + ([1.0] if counted.bins else [])
        panels = canvas.subplots(1, max(1, len(shares)), sharey=True, squeeze=False, width_ratios=shares or [1.0])[0]
        zones = []
        if counted.zero:
            zones += _draw_zero(counted.zero, panels[0])
        if counted.bins:
            zones += _draw_bins(counted.bins, panels[-1])
        if not zones:
            panels[0].text(0.5, 0.5, "no finite score", transform=panels[0].transAxes, ha="center", va="center")
            panels[0].set_xticks([])
        _draw_counts(panels[0])
        panels[-1].set_xlabel("importance score")
        return drawing.svg_of(canvas, _description(kind, counted), zones)


def _draw_zero(zero: Bin, axes: Axes) -> list[Zone]:
    """Draw a separate bar for scores that a logarithmic axis cannot show."""
    _draw_bars([zero], [0.0], [1.0], axes)
    axes.set_xlim(-0.4, 1.4)
    axes.set_xticks([0.5], [_ZERO_NAME])
    return [_zone(zero, 0.0, 1.0, axes)]


def _draw_bins(bins: Sequence[Bin], axes: Axes) -> list[Zone]:
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

    lows, highs = [10.0**item.low for item in bins], [10.0**item.high for item in bins]
    _draw_bars(bins, lows, [high - low for low, high in zip(lows, highs, strict=True)], axes)
    axes.set_xscale("log")
    axes.set_xlim(lows[0], highs[-1])
    decades = bins[-1].high - bins[0].low
    locator = LogLocator(subs=(1, 2, 5) if decades < 1.5 else (1,), numticks=6)
    axes.xaxis.set_major_locator(locator if decades > 0.7 else MaxNLocator(2))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: power_of_ten(value)))
    return [_zone(item, low, high, axes) for item, low, high in zip(bins, lows, highs, strict=True)]


def _draw_bars(bins: Sequence[Bin], lefts: Sequence[float], widths: Sequence[float], axes: Axes) -> None:
    axes.bar(lefts, [item.kept for item in bins], widths, align="edge", color=ACCENT, linewidth=0)
    for item, left, width in zip(bins, lefts, widths, strict=True):
        if item.removed:
            bar = axes.bar(left, item.removed, width, bottom=item.kept, align="edge", color=REMOVED)
            bar.patches[0].set(edgecolor=CUT, linewidth=1)


def _draw_counts(axes: Axes) -> None:
    from matplotlib.ticker import MaxNLocator, StrMethodFormatter

    axes.set_ylim(0, max(1.0, axes.get_ylim()[1]))
    axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.set_ylabel("groups")


def _zone(item: Bin, left: float, right: float, axes: Axes) -> Zone:
    text = f"{_range(item)}: {item.kept:,} kept, {item.removed:,} removed"
    return Zone(axes=(axes,), left=left, right=right, texts=(text,))


def _range(item: Bin) -> str:
    if item.high == -math.inf:
        return f"Score {_ZERO_NAME}"
    return f"Score {numbers.significant(10.0**item.low)} to {numbers.significant(10.0**item.high)}"


def power_of_ten(value: float) -> str:
    """Label a tick of a logarithmic axis with superscripts, small powers in full; empty for values it cannot show."""
    if value <= 0:
        return ""
    exponent = math.floor(math.log10(value) + 1e-9)
    if -3 <= exponent <= 3:
        return f"{float(f'{value:.3g}'):,g}"
    power, factor = "10" + str(exponent).translate(_SUPERSCRIPTS), value / 10.0**exponent
    return power if abs(factor - 1) < 1e-6 else f"{factor:.3g}\N{MIDDLE DOT}{power}"


def _description(kind: str, counted: Histogram) -> str:
    columns = [*([counted.zero] if counted.zero else []), *counted.bins]
    kept, removed = sum(item.kept for item in columns), sum(item.removed for item in columns)
    text = f"{capitalized(kind)}: importance scores of {kept + removed:,}, {kept:,} kept and {removed:,} removed"
    text += f"; median of the kept {_median(columns, 'kept')}, of the removed {_median(columns, 'removed')}."
    return f"{text} {counted.unknown:,} more have no finite score." if counted.unknown else text


def _median(columns: Sequence[Bin], which: str) -> str:
    """Center of the bin that contains the median."""
    counts = [getattr(item, which) for item in columns]
    half, seen = sum(counts) / 2, 0
    for item, count in zip(columns, counts, strict=True):
        seen += count
        if count and seen >= half:
            return _ZERO_NAME if item.high == -math.inf else numbers.significant(10.0 ** ((item.low + item.high) / 2))
    return "none"
