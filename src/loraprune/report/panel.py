"""The frame of one chart: its area, grid lines, axes and labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from loraprune.report import svg
from loraprune.report.scales import Scale

if TYPE_CHECKING:
    from collections.abc import Sequence

    Ticks = Sequence[tuple[float, str]]

TICK_GAP = 8.0
AXIS_HEIGHT = 42.0
SIDE_MARGIN = 28.0


@dataclass(frozen=True, kw_only=True)
class Panel:
    """The area that data is drawn in, in the units of the picture."""

    left: float
    right: float
    top: float
    bottom: float

    def x_scale(self, low: float, high: float) -> Scale:
        """Map values onto the width of the panel."""
        return Scale(low=low, high=high, start=self.left, end=self.right)

    def y_scale(self, low: float, high: float) -> Scale:
        """Map values onto the height of the panel, upward."""
        return Scale(low=low, high=high, start=self.bottom, end=self.top)


def margin_for(*axes: Ticks) -> float:
    """Return the room to the left of panels that the widest label of their vertical axes needs.

    It is never less than what half of a label under the left end takes.
    """
    widest = max((svg.text_width(text) for ticks in axes for _, text in ticks), default=0.0)
    return max(SIDE_MARGIN, widest + TICK_GAP + 2)


def heading(panel: Panel, text: str, value: str = "") -> str:
    """Write what the panel shows above its left end, and optionally a value above its right end."""
    y = panel.top - 12
    right = svg.label(panel.right, y, value, anchor="end", class_="value") if value else ""
    return svg.label(panel.left, y, text, class_="heading") + right


def horizontal_grid(panel: Panel, scale: Scale, ticks: Ticks) -> str:
    """Draw a line across the panel for every tick of its vertical axis, with the label to the left."""
    parts = []
    for value, text in ticks:
        y = scale(value)
        parts.append(svg.line(panel.left, y, panel.right, y, "grid"))
        parts.append(svg.label(panel.left - TICK_GAP, y + 4, text, anchor="end"))
    return "".join(parts)


def horizontal_axis(panel: Panel, places: Ticks, name: str) -> str:
    """Draw the horizontal axis with its name under it.

    Args:
        panel: the panel that stands on the axis.
        places: positions of the ticks (not values) with their labels.
        name: what the axis counts.
    """
    parts = [svg.line(panel.left, panel.bottom, panel.right, panel.bottom, "axis")]
    for x, text in places:
        parts.append(svg.line(x, panel.bottom, x, panel.bottom + 4, "axis"))
        parts.append(svg.label(x, panel.bottom + 17, text, anchor="middle"))
    middle = (panel.left + panel.right) / 2
    parts.append(svg.label(middle, panel.bottom + 35, name, anchor="middle", class_="axis-name"))
    return "".join(parts)
