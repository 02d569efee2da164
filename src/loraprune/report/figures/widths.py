"""Figure of widths: the number of groups of one kind kept in each layer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from loraprune.record import numbers
from loraprune.report import drawing
from loraprune.report.drawing import ACCENT, CUT, REMOVED, Zone
from loraprune.report.figure import HALF_WIDTH, KEPT_AND_REMOVED, NONZERO_WEIGHTS, Figure, capitalized, kind_in_words

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes

    from loraprune.record.report_data import LayerWidth

_HEIGHT = 230.0
_MAX_OUTLINED = 60


def layers_figure(widths: Sequence[LayerWidth]) -> Figure:
    """Draw one bar per layer: groups kept, and removed groups above.

    Args:
        widths: layers of one kind, at least one.
    """
    widths = sorted(widths, key=lambda item: item.layer)
    if widths[0].kind == NONZERO_WEIGHTS:
        caption = "Solid: nonzero weights. The whole bar: all weights of the layer's matrices."
        legend = (("kept", "nonzero"), ("removed", "zero"))
        return Figure(title="Zeros in each layer", markup=_picture(widths), caption=caption, legend=legend)
    title = f"{capitalized(kind_in_words(widths[0].kind))} in each layer"
    caption = "Solid: groups kept. The whole bar: groups before pruning."
    return Figure(title=title, markup=_picture(widths), caption=caption, legend=KEPT_AND_REMOVED)


def _picture(widths: Sequence[LayerWidth]) -> str:
    from matplotlib.ticker import MaxNLocator, StrMethodFormatter

    with drawing.drawing(HALF_WIDTH, _HEIGHT) as canvas:
        axes = canvas.subplots()
        _draw_bars(widths, axes)
        drawing.draw_layer_axis(axes, [item.layer for item in widths])
        axes.set_ylim(0, max(1, *(item.total for item in widths)))
        axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        return drawing.svg_of(canvas, _description(widths), _zones(widths, axes))


def _draw_bars(widths: Sequence[LayerWidth], axes: Axes) -> None:
    """Draw the layers. Bars stay slim if there are few, and have no gaps if there are very many."""
    outlined = len(widths) <= _MAX_OUTLINED
    thickness = 0.7 if outlined else 1.0
    outline = {"edgecolor": CUT, "linewidth": 1} if outlined else {"linewidth": 0}
    places = range(len(widths))
    axes.bar(places, [item.total for item in widths], thickness, color=REMOVED, **outline)
    axes.bar(places, [item.kept for item in widths], thickness, color=ACCENT)


def _zones(widths: Sequence[LayerWidth], axes: Axes) -> list[Zone]:
    return [
        Zone(axes=(axes,), left=place - 0.5, right=place + 0.5, texts=(_text(item),))
        for place, item in enumerate(widths)
    ]


def _text(item: LayerWidth) -> str:
    share = numbers.percent(item.kept / item.total if item.total else None)
    if item.kind == NONZERO_WEIGHTS:
        zeros = item.total - item.kept
        return f"Layer {item.layer}: {zeros:,} of {item.total:,} weights are zero ({numbers.percent(_zeros(item))})"
    return f"Layer {item.layer}: {item.kept:,} of {item.total:,} {kind_in_words(item.kind)} kept ({share})"


def _zeros(item: LayerWidth) -> float:
    return 1 - item.kept / item.total if item.total else 0.0


def _description(widths: Sequence[LayerWidth]) -> str:
    if widths[0].kind == NONZERO_WEIGHTS:
        shares = [_zeros(item) for item in widths]
        span = f"between {numbers.percent(min(shares))} and {numbers.percent(max(shares))}"
        return f"Zeros in each of {len(widths)} layers: {span} of the weights of a layer."
    kept, total = sum(item.kept for item in widths), sum(item.total for item in widths)
    each = [item.kept for item in widths]
    return (
        f"{capitalized(kind_in_words(widths[0].kind))} kept in {numbers.counted(len(widths), 'layer')}: {kept:,} of "
        f"{total:,} in all, between {min(each):,} and {max(each):,} per layer."
    )
