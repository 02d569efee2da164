"""What a picture tells under the pointer: invisible rectangles with texts, which the script of the page shows."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes

SEPARATOR = "|"


@dataclass(frozen=True, kw_only=True)
class Zone:
    """A part of a picture in units of its data.

    Attributes:
        axes: that it lies in; with several, it reaches over all of them.
        left: its left edge on the horizontal axis of the first; ``right``: its right edge.
        bottom: its lower edge; ``top``: its upper one; None for the whole height.
        texts: what it tells; several part it into cells of one width.
        head: stands before each text.
    """

    axes: tuple[Axes, ...]
    left: float
    right: float
    bottom: float | None = None
    top: float | None = None
    texts: tuple[str, ...]
    head: str = ""


def zones_markup(zones: Sequence[Zone], height: float, columns: Sequence[str] = ()) -> str:
    """Write zones as SVG; the layout of the figure has to be done.

    Args:
        zones: of one picture.
        height: of the picture; SVG counts downward, matplotlib upward.
        columns: names of the cells, where all zones have the same.
    """
    if not zones:
        return ""
    named = f' data-columns="{_joined(columns)}"' if columns else ""
    mark = '<rect class="mark" width="0" height="0"/>'
    return f'<g class="zones"{named}>{mark}{"".join(_rectangle(zone, height) for zone in zones)}</g>'


def _rectangle(zone: Zone, height: float) -> str:
    boxes = [axes.bbox for axes in zone.axes]
    bottom, top = min(box.y0 for box in boxes), max(box.y1 for box in boxes)
    to_pixels = zone.axes[0].transData.transform
    vertical = zone.axes[0].get_ylim()
    left, first = to_pixels((zone.left, vertical[0] if zone.bottom is None else zone.bottom))
    right, second = to_pixels((zone.right, vertical[1] if zone.top is None else zone.top))
    if zone.bottom is not None:
        bottom = min(first, second)
    if zone.top is not None:
        top = max(first, second)
    left, right = sorted((left, right))
    place = f'x="{left:.1f}" y="{height - top:.1f}" width="{right - left:.1f}" height="{top - bottom:.1f}"'
    head = f' data-head="{escape(zone.head)}"' if zone.head else ""
    return f'<rect class="zone" {place}{head} data-tips="{_joined(zone.texts)}"/>'


def _joined(texts: Sequence[str]) -> str:
    return escape(SEPARATOR.join(text.replace(SEPARATOR, "\N{BROKEN BAR}") for text in texts))
