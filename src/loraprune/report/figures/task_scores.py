"""Figure of task scores: the accuracy of both models on each task."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from loraprune.record import numbers
from loraprune.report import before_after, drawing
from loraprune.report.drawing import ACCENT, CUT, REMOVED, Zone
from loraprune.report.figure import FULL_WIDTH, Figure

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes

    from loraprune.record.report_data import Row

_TASK_HEIGHT = 44.0
_AXIS_HEIGHT = 60.0
_THICKNESS = 0.38


def scores_figure(scores: Sequence[Row], before: str, after: str) -> Figure:
    """Draw accuracies as two bars per task.

    Args:
        scores: accuracies, at least one.
        before: name of the first bar's model.
        after: name of the second bar's model.
    """
    caption = "Share of the items that each model answers correctly. Guessing also gets some of them right."
    return Figure(title="Accuracy by task", markup=_picture(scores, before, after), caption=caption, full=True)


def _picture(scores: Sequence[Row], before: str, after: str) -> str:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    with drawing.drawing(FULL_WIDTH, _TASK_HEIGHT * len(scores) + _AXIS_HEIGHT) as canvas:
        axes = canvas.subplots()
        places = range(len(scores))
        firsts, seconds = [numbers.or_nan(row.dense) for row in scores], [numbers.or_nan(row.pruned) for row in scores]
        style: dict[str, Any] = {"color": REMOVED, "edgecolor": CUT, "linewidth": 1}
        first = axes.barh([place - _THICKNESS / 2 for place in places], firsts, _THICKNESS, label=before, **style)
        second = axes.barh([place + _THICKNESS / 2 for place in places], seconds, _THICKNESS, color=ACCENT, label=after)
        for bars, values in ((first, firsts), (second, seconds)):
            axes.bar_label(bars, ["" if math.isnan(value) else numbers.percent(value) for value in values], padding=4)
        axes.set_yticks(places, [_name(row) for row in scores])
        axes.set_ylim(len(scores) - 0.4, -0.6)
        known = [value for value in (*firsts, *seconds) if not math.isnan(value)]
        axes.set_xlim(0, 1.12 * max(known, default=0.0) or 1.0)
        axes.xaxis.set_major_locator(MaxNLocator(6))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g} %"))
        axes.grid(axis="y", visible=False)
        axes.grid(axis="x", visible=True)
        canvas.legend(loc="outside upper left", ncols=2)
        return drawing.svg_of(canvas, _description(scores, before, after), _zones(scores, before, after, axes))


def _name(row: Row) -> str:
    """Label of a task, shortened if it would need more than two fifths of the figure."""
    room = int(0.4 * FULL_WIDTH / (0.6 * drawing.FONT_POINTS))
    return row.label if len(row.label) <= room else f"{row.label[: room - 1]}…"


def _zones(scores: Sequence[Row], before: str, after: str, axes: Axes) -> list[Zone]:
    right = axes.get_xlim()[1]
    return [
        Zone(
            axes=(axes,),
            left=0,
            right=right,
            bottom=place - 0.5,
            top=place + 0.5,
            texts=(_text(row, before, after),),
        )
        for place, row in enumerate(scores)
    ]


def _text(row: Row, before: str, after: str) -> str:
    shown = before_after.format_row(row)
    return f"{row.label}: {shown.dense} {before}, {shown.pruned} {after} ({shown.change})"


def _description(scores: Sequence[Row], before: str, after: str) -> str:
    texts = "; ".join(_text(row, before, after) for row in scores)
    return f"Accuracy on {numbers.counted(len(scores), 'task')}. {texts}."
