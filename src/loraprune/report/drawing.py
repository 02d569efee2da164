"""Matplotlib figures as inline SVG. Text stays text, and colors are those of the page in light and dark mode."""

from __future__ import annotations

import hashlib
import io
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

TEXT = "#0a0001"
SOFT = "#0a0002"
RULE = "#0a0003"
ACCENT = "#0a0004"
WASH = "#0a0005"
REMOVED = "#0a0006"
CUT = "#0a0007"
CARD = "#0a0008"
SECOND = "#0a0009"
THIRD = "#0a000a"
FOURTH = "#0a000b"
FIFTH = "#0a000c"
"""Placeholders for the page's colors. Matplotlib draws with them, and the SVG refers to the page's own colors."""

VARIABLES = {
    TEXT: "--text",
    SOFT: "--soft",
    RULE: "--rule",
    ACCENT: "--accent",
    WASH: "--wash",
    REMOVED: "--removed",
    CUT: "--cut",
    CARD: "--card",
    SECOND: "--second",
    THIRD: "--third",
    FOURTH: "--fourth",
    FIFTH: "--fifth",
}
SERIES = (ACCENT, SECOND, THIRD, FOURTH, FIFTH)
"""Colors of the series, and the marks that distinguish them without color."""
MARKERS = ("o", "s", "^", "D", "v")

POINTS = 72.0
FONT_POINTS = 12.0

_STYLE: Any = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": FONT_POINTS,
    "text.color": SOFT,
    "text.parse_math": False,
    "axes.edgecolor": CUT,
    "axes.linewidth": 1.0,
    "axes.facecolor": "none",
    "axes.labelcolor": SOFT,
    "axes.labelsize": FONT_POINTS,
    "axes.titlecolor": TEXT,
    "axes.titlesize": FONT_POINTS,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "axes.unicode_minus": True,
    "grid.color": RULE,
    "grid.linewidth": 1.0,
    "xtick.color": CUT,
    "xtick.major.pad": 6.0,
    "ytick.color": CUT,
    "xtick.labelcolor": SOFT,
    "ytick.labelcolor": SOFT,
    "ytick.major.size": 0.0,
    "ytick.minor.size": 0.0,
    "legend.frameon": False,
    "legend.borderaxespad": 0.35,
    "legend.borderpad": 0.0,
    "legend.fontsize": FONT_POINTS,
    "lines.linewidth": 2.0,
    "lines.solid_joinstyle": "round",
    "figure.constrained_layout.h_pad": 4 / POINTS,
    "figure.constrained_layout.w_pad": 4 / POINTS,
}


@contextmanager
def drawing(width: float, height: float) -> Iterator[Figure]:
    """Yield a figure of a size in page pixels, with the report's style active."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(width / POINTS, height / POINTS), dpi=POINTS, layout="constrained")
        yield figure


def svg_of(figure: Figure, label: str, zones: Sequence[Zone] = (), columns: Sequence[str] = ()) -> str:
    """Return the figure as markup for a page.

    Args:
        figure: drawn with the colors of this module.
        label: description for screen readers; also keeps the ids of several figures on a page apart.
        zones: hover texts of the figure.
        columns: names of the cells of each zone, if all zones have the same.
    """
    import matplotlib

    width, height = (round(side * POINTS) for side in figure.get_size_inches())
    key = hashlib.sha256(f"{label} {width} {height}".encode(errors="replace")).hexdigest()[:8]
    text = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": key}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"Glyph \d+ .* missing from")  # the page's font is used, not ours
        _lay_out_(figure)
        figure.savefig(text, format="svg", transparent=True, metadata=nothing)
    markup = _slimmed(text.getvalue(), key)
    for color, variable in VARIABLES.items():
        markup = markup.replace(color, f"var({variable})")
    opening = (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="0 0 {width} {height}" role="img" aria-label="{escape(label)}">'
    )
    markup = re.sub(r"<svg[^>]*>", lambda _: opening, markup, count=1)
    return markup.replace("</svg>", zones_markup(zones, height, columns) + "</svg>")


def _lay_out_(figure: Figure) -> None:
    """Lay out once. A figure that keeps its layout engine is laid out and drawn twice more when it is saved."""
    engine = figure.get_layout_engine()
    if engine is not None:
        engine.execute(figure)
        figure.set_layout_engine(None)


def _slimmed(markup: str, key: str) -> str:
    """Remove what the page does not need, and keep the ids distinct from those of other figures."""
    markup = markup[markup.index("<svg") :]
    markup = re.sub(r"<metadata>.*?</metadata>\s*|<style.*?</style>\s*", "", markup, flags=re.DOTALL)
    markup = re.sub(r' d="([^"]*)"', lambda found: f' d="{_short(found[1])}"', markup)
    used = set(re.findall(r'(?:"#|url\(#)([^")]+)', markup))
    markup = re.sub(r' id="([^"]+)"', lambda found: f' id="{key}-{found[1]}"' if found[1] in used else "", markup)
    markup = re.sub(r'("#|url\(#)', rf"\g<1>{key}-", markup)
    markup = re.sub(r"\n\s*", "\n", markup)
    return re.sub(r"<g>\s*</g>\s*|<defs>\s*</defs>\s*", "", markup)


def _short(path: str) -> str:
    """Round a path to hundredths of a pixel, which is finer than any screen."""
    return re.sub(r"(\.\d\d)\d+", r"\1", " ".join(path.split()))


# Hover texts of a figure: invisible rectangles with texts that the page's script shows.

SEPARATOR = "|"


@dataclass(frozen=True, kw_only=True)
class Zone:
    """A part of a figure, in data units.

    Attributes:
        axes: its axes; with several, it spans all of them.
        left: left edge on the horizontal axis of the first; ``right``: right edge.
        bottom: lower edge; ``top``: upper edge; None for the whole height.
        texts: hover texts; several divide it into cells of equal width.
        head: text before each of them.
    """

    axes: tuple[Axes, ...]
    left: float
    right: float
    bottom: float | None = None
    top: float | None = None
    texts: tuple[str, ...]
    head: str = ""


def zones_markup(zones: Sequence[Zone], height: float, columns: Sequence[str] = ()) -> str:
    """Write zones as SVG. The layout of the figure must be final.

    Args:
        zones: zones of one figure.
        height: height of the figure; SVG counts downward, matplotlib upward.
        columns: names of the cells, if all zones have the same.
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


# Axes that show the layers of a model.


def label_layers(axis: Axis, layers: Sequence[int], most: int) -> None:
    """Label an axis of layers, counted from 0, with as many labels as fit.

    Args:
        axis: axis of a figure.
        layers: layers along the axis, in order; a layer may occur several times.
        most: approximate maximum number of labels.
    """
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    names = dict(enumerate(map(str, layers)))
    axis.set_major_locator(MaxNLocator(most, integer=True))
    axis.set_major_formatter(FuncFormatter(lambda place, _: names.get(place, "")))


def draw_layer_axis(axes: Axes, layers: Sequence[int]) -> None:
    """Lay out a horizontal axis of layers, from 0. With few layers, space stays free on the right to keep bars slim."""
    label_layers(axes.xaxis, layers, 14)
    axes.set_xlim(-0.6, max(len(layers) - 0.4, 2.6))
    axes.set_xlabel("layer")
