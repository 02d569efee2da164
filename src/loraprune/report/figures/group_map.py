"""Map of removed groups: a row per layer, a cell per group or run of neighbors, and the share kept in each layer."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from loraprune.record import numbers
from loraprune.report import drawing
from loraprune.report.drawing import ACCENT, CARD, CUT, REMOVED, Zone
from loraprune.report.figure import HALF_WIDTH, KEPT_AND_REMOVED, Figure, kind_in_words

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes

    from loraprune.record.report_data import GroupMap, LayerWidth

KEPT = "#3b7ddd"
"""Color of the groups kept: ``--accent`` of the style sheet (same in both schemes), which pixels cannot refer to."""

_AXIS_HEIGHT = 48.0
_ROW_HEIGHT = 20.0
_MIN_HEIGHT, _MAX_HEIGHT = 110.0, 420.0
_PIXELS_PER_LABEL = 16.0
_MAX_LINED = 1500


@dataclass(frozen=True, kw_only=True)
class _Row:
    """A row of the map: positions of the removed groups, the number of groups, and the share kept, also as text."""

    map: GroupMap
    groups: int
    share: float
    text: str


def map_figure(maps: Sequence[GroupMap], widths: Sequence[LayerWidth] = ()) -> Figure:
    """Draw the positions of the removed groups of one kind.

    Args:
        maps: maps of one kind, at least one with a cell.
        widths: widths of the same kind. Without them, shares are those of the cells, of which the last may hold fewer
            groups.
    """
    maps = sorted((item for item in maps if item.kept), key=lambda item: item.layer)
    widths = sorted(widths, key=lambda item: item.layer)
    known = [item.layer for item in widths] == [item.layer for item in maps]
    rows = [_row(item, width) for item, width in zip(maps, widths if known else [None] * len(maps), strict=True)]
    kind = kind_in_words(maps[0].kind)
    size = _group_size(rows)
    cell = f"{size:,} neighbors: the paler, the more were removed" if size > 1 else f"one of its {kind}"
    caption = f"Each row is a layer, each cell {cell}. Bars: share kept in each layer."
    return Figure(title=f"Which {kind} were kept", markup=_picture(rows), caption=caption, legend=KEPT_AND_REMOVED)


def _row(cells: GroupMap, width: LayerWidth | None) -> _Row:
    if width is None or not width.total:
        share = sum(map(_share, cells.kept)) / len(cells.kept)
        groups = len(cells.kept) * cells.groups_per_cell
        return _Row(map=cells, groups=groups, share=share, text=numbers.percent(share))
    return _Row(
        map=cells, groups=width.total, share=width.kept / width.total, text=f"{width.kept:,} of {width.total:,}"
    )


def _group_size(rows: Sequence[_Row]) -> int:
    return max(row.map.groups_per_cell for row in rows)


def _picture(rows: Sequence[_Row]) -> str:
    height = min(_MAX_HEIGHT, max(_MIN_HEIGHT, _ROW_HEIGHT * len(rows)))
    with drawing.drawing(HALF_WIDTH, height + _AXIS_HEIGHT) as canvas:
        cells, bars = canvas.subplots(1, 2, sharey=True, width_ratios=(5, 1))
        _draw_cells(rows, cells)
        _draw_shares(rows, bars)
        drawing.label_layers(cells.yaxis, [row.map.layer for row in rows], int(height / _PIXELS_PER_LABEL))
        cells.set_ylim(len(rows) - 0.5, -0.5)
        columns = [_place(rows, column) for column in range(max(len(row.map.kept) for row in rows))]
        return drawing.svg_of(canvas, _description(rows), _zones(rows, cells), columns)


def _draw_cells(rows: Sequence[_Row], axes: Axes) -> None:
    """Draw the cells as one small image. The opacity of each pixel is the share kept in its cell."""
    from matplotlib.colors import to_rgba

    most = max(len(row.map.kept) for row in rows)
    shares = [[*map(_share, row.map.kept), *[0.0] * (most - len(row.map.kept))] for row in rows]
    pixels = [[to_rgba(KEPT, share) for share in line] for line in shares]
    extent = (0, most, len(rows) - 0.5, -0.5)
    axes.fill_between([0, most], -0.5, len(rows) - 0.5, color=REMOVED, linewidth=0, zorder=-2)
    axes.imshow(pixels, interpolation="none", aspect="auto", extent=extent, zorder=-1)
    if most * len(rows) <= _MAX_LINED:
        axes.vlines(range(1, most), -0.5, len(rows) - 0.5, color=CARD, linewidth=1)
        axes.hlines([place - 0.5 for place in range(1, len(rows))], 0, most, color=CARD, linewidth=1)
    for place, row in enumerate(rows):
        if len(row.map.kept) < most:
            axes.fill_between([len(row.map.kept), most], place - 0.5, place + 0.5, color=CARD, linewidth=0)
    axes.spines[:].set(visible=True, color=CUT)
    axes.grid(visible=False)
    axes.set_xticks([])
    kind, size = kind_in_words(rows[0].map.kind), _group_size(rows)
    axes.set_xlabel(f"{kind}, in runs of {size:,}" if size > 1 else kind)
    axes.set_ylabel("layer")


def _draw_shares(rows: Sequence[_Row], axes: Axes) -> None:
    places = range(len(rows))
    thickness = 0.7 if len(rows) <= 40 else 1.0
    outline = {"edgecolor": CUT, "linewidth": 1} if len(rows) <= 40 else {"linewidth": 0}
    axes.barh(places, [1.0] * len(rows), thickness, color=REMOVED, **outline)
    axes.barh(places, [row.share for row in rows], thickness, color=ACCENT)
    axes.set_xlim(0, 1)
    axes.set_xticks([0, 1], ["0 %", "100 %"])
    axes.spines["bottom"].set_visible(False)
    axes.grid(visible=False)


def _zones(rows: Sequence[_Row], axes: Axes) -> list[Zone]:
    return [
        Zone(
            axes=(axes,),
            left=0,
            right=len(row.map.kept),
            bottom=place - 0.5,
            top=place + 0.5,
            texts=tuple(_cell_text(row.map, share) for share in row.map.kept),
            head=f"Layer {row.map.layer} ({row.text} kept)",
        )
        for place, row in enumerate(rows)
    ]


def _cell_text(cells: GroupMap, share: float) -> str:
    if cells.groups_per_cell == 1 and share in (0.0, 1.0):
        return "kept" if share else "removed"
    return numbers.percent(share)


def _place(rows: Sequence[_Row], column: int) -> str:
    """Content of the cells of a column: one group or a run of groups."""
    size = _group_size(rows)
    first, last = column * size, min((column + 1) * size, max(row.groups for row in rows)) - 1
    return f"{kind_in_words(rows[0].map.kind)} {first:,}" + (f"–{last:,}" if last > first else "")


def _share(value: float) -> float:
    return min(1.0, max(0.0, value)) if math.isfinite(value) else 0.0


def _description(rows: Sequence[_Row]) -> str:
    shares = [row.share for row in rows]
    least, most = rows[shares.index(min(shares))], rows[shares.index(max(shares))]
    text = f"Map of the {kind_in_words(rows[0].map.kind)} that were kept, in {numbers.counted(len(rows), 'row')}"
    if math.isclose(least.share, most.share):
        return f"{text}: {least.text} in each."
    return f"{text}: least in layer {least.map.layer} ({least.text}), most in layer {most.map.layer} ({most.text})."
