"""The chart of widths: how many groups of one kind each layer kept."""

from __future__ import annotations

from typing import TYPE_CHECKING

from loraprune.report import numbers, panel, scales, svg
from loraprune.report.panel import Panel

if TYPE_CHECKING:
    from collections.abc import Sequence

    from loraprune.report.data import LayerWidth
    from loraprune.report.scales import Scale

_TOP = 10.0
_HEIGHT = 180.0
_RIGHT = 12.0


def layers_chart(widths: Sequence[LayerWidth], width: float) -> str:
    """Draw one bar a layer: what stayed, and above it what was removed.

    Args:
        widths: the layers of one kind, at least one.
        width: width of the picture.
    """
    widths = sorted(widths, key=lambda item: item.layer)
    most = max(1, *(item.total for item in widths))
    ticks = scales.ticks(0, most, 4, whole=True)
    area = Panel(left=panel.margin_for(ticks), right=width - _RIGHT, top=_TOP, bottom=_TOP + _HEIGHT)
    y = area.y_scale(0, most)
    pitch = (area.right - area.left) / len(widths)
    bars = "".join(_bar(item, area.left + index * pitch, pitch, y) for index, item in enumerate(widths))
    return svg.picture(
        width,
        area.bottom + panel.AXIS_HEIGHT,
        _description(widths),
        panel.horizontal_grid(area, y, ticks),
        bars,
        panel.horizontal_axis(area, _layer_labels(widths, area.left, pitch), "layer"),
    )


def _bar(item: LayerWidth, left: float, pitch: float, y: Scale) -> str:
    """Draw one layer; bars stay slim where there are few, and lose their gaps where there are very many."""
    width = min(48.0, max(0.72 * pitch, min(pitch - 1, 7.0))) if pitch >= 3 else pitch
    x = left + (pitch - width) / 2
    share = numbers.percent(item.kept / item.total if item.total else None)
    floor, kept, total = y(0), y(item.kept), y(item.total)
    return svg.element(
        "g",
        svg.title(f"Layer {item.layer}: {item.kept:,} of {item.total:,} {item.kind} kept ({share})"),
        svg.rectangle(x, total, width, kept - total, "removed"),
        svg.rectangle(x, kept, width, floor - kept, "kept"),
    )


def _layer_labels(widths: Sequence[LayerWidth], left: float, pitch: float) -> list[tuple[float, str]]:
    """Label every layer where there is room, else every second, fifth, tenth and so on."""
    widest = max(svg.text_width(str(item.layer)) for item in widths) + 6
    stride = round(scales.tick_step(widest / pitch, 1, whole=True))
    return [
        (left + (index + 0.5) * pitch, str(item.layer))
        for index, item in enumerate(widths)
        if stride == 1 or item.layer % stride == 0
    ]


def _description(widths: Sequence[LayerWidth]) -> str:
    kept, total = sum(item.kept for item in widths), sum(item.total for item in widths)
    each = [item.kept for item in widths]
    return (
        f"{widths[0].kind} kept in each of {len(widths)} layers: {kept:,} of {total:,} in all, "
        f"between {min(each):,} and {max(each):,} a layer."
    )
