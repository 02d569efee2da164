"""The pictures of a report with their captions, each drawn for wide and for narrow screens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from loraprune.report.histogram import histogram
from loraprune.report.importance_chart import importance_chart
from loraprune.report.layers_chart import layers_chart
from loraprune.report.training_chart import training_chart

if TYPE_CHECKING:
    from collections.abc import Callable

    from loraprune.report.data import ReportData

FULL_WIDTH = 1040.0
HALF_WIDTH = 504.0
NARROW_WIDTH = 352.0

_KEPT_AND_REMOVED = (("kept", "kept"), ("removed", "removed"))


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One picture in two sizes, for labels do not scale with the screen.

    Attributes:
        title: what it shows.
        caption: what the reader has to know to read it, or empty.
        legend: pairs of style class and name.
        wide: SVG for wide screens; ``narrow``: for phones.
        full: whether it takes the full width of the page.
    """

    title: str
    caption: str = ""
    legend: tuple[tuple[str, str], ...] = ()
    wide: str
    narrow: str
    full: bool = False


def figures(data: ReportData) -> list[Figure]:
    """Draw all pictures that there is data for: the run, then widths and importance, a picture a kind of group."""
    drawn = []
    if data.history:
        drawn.append(_training_figure(data))
    drawn += [_layers_figure(data, kind) for kind in dict.fromkeys(item.kind for item in data.layers)]
    kinds = dict.fromkeys(item.kind for item in data.importance.values())
    return drawn + [_importance_figure(data, kind) for kind in kinds]


def _training_figure(data: ReportData) -> Figure:
    def draw(width: float) -> str:
        return training_chart(data, width)

    what = "Cuts" if data.headline.sparsity is None else "New masks"
    caption = f"{what} are marked by vertical lines." if data.cuts else ""
    return Figure(title="The run", caption=caption, wide=draw(FULL_WIDTH), narrow=draw(NARROW_WIDTH), full=True)


def _layers_figure(data: ReportData, kind: str) -> Figure:
    widths = [item for item in data.layers if item.kind == kind]
    return _half(f"{_capitalized(in_words(kind))} in each layer", "", lambda width: layers_chart(widths, width))


def _importance_figure(data: ReportData, kind: str) -> Figure:
    dimensions = [item for item in data.importance.values() if item.kind == kind]
    caption = "Removed groups count with the score that they had when they were cut."
    unknown = histogram(dimensions).unknown
    if unknown:
        caption += f" {unknown:,} without a finite score are not shown."
    return _half(f"Importance of {in_words(kind)}", caption, lambda width: importance_chart(dimensions, width))


def _half(title: str, caption: str, draw: Callable[[float], str]) -> Figure:
    return Figure(
        title=title, caption=caption, legend=_KEPT_AND_REMOVED, wide=draw(HALF_WIDTH), narrow=draw(NARROW_WIDTH)
    )


def in_words(kind: str) -> str:
    """A kind of dimension as a reader expects it: ``expert channels``."""
    return kind.replace("_", " ")


def _capitalized(text: str) -> str:
    return text[:1].upper() + text[1:]
