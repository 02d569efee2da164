"""Figure of a comparison: quality against parameters, latency and training time, with the Pareto fronts."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loraprune.record import numbers
from loraprune.report import drawing, figure, picture_files
from loraprune.report.comparison import result
from loraprune.report.comparison.result import SECONDS, ComparedModel, Cost, RunGroup
from loraprune.report.comparison.ticks import Box, label_places, set_ticks, set_time_ticks
from loraprune.report.drawing import ACCENT, CARD, CUT, SOFT, TEXT, Zone

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    from loraprune.report.comparison.result import RunsComparison

PANEL_HEIGHT = 300.0
LEGEND_HEIGHT = 30.0
_MARK = 9.0
_HIT = 11.0
_STEP = 6.0
"""Distance in pixels between the points that keep labels off a line."""


def runs_figure(group: RunGroup, title: str) -> figure.Figure:
    """Draw a group of models, with a panel for each cost."""
    caption = "Numbers are those of the runs in the table. "
    if any(len(model.best_for) for model in group.models):
        caption += "A line joins the Pareto front: no other model is as good in both and better in one. "
    caption += "".join(f"{cost.label}: {cost.detail}. " for cost in group.costs if cost.detail)
    why = "; ".join(f"{cost.label.lower()}: {cost.why_no_front}" for cost in group.costs if cost.why_no_front)
    caption += f"No front is drawn where figures cannot be ranked ({why})." if why else ""
    return figure.Figure(title=title, markup=_markup(group), caption=caption.strip(), full=True)


def _markup(group: RunGroup) -> str:
    with drawing.drawing(figure.FULL_WIDTH, PANEL_HEIGHT + LEGEND_HEIGHT) as canvas:
        panels = list(canvas.subplots(1, len(group.costs), squeeze=False, sharey="row").flat)
        _draw_group(group, panels)
        canvas.legend(handles=legend(group), loc="outside upper left", ncols=4)
        _place_labels(canvas, [(group, panels)])
        return drawing.svg_of(canvas, _description(group), _zones(group, panels))


def _draw_group(group: RunGroup, panels: Sequence[Axes]) -> None:
    """Draw the points and fronts of a group, with a panel for each cost. Labels follow when the layout is final."""
    for cost, axes in zip(group.costs, panels, strict=True):
        _draw_panel(group, cost, axes)
    panels[0].set_ylabel(f"{group.quality.label}\n({result.quality_direction(group.quality)})")


def _draw_panel(group: RunGroup, cost: Cost, axes: Axes) -> None:
    shown = _shown_in(group, cost)
    axes.grid(axis="x", visible=True)
    for model in group.models if cost.name == SECONDS else ():
        if model.number is None and numbers.is_number(model.quality):
            _draw_level(axes, model, higher_is_better=group.quality.higher_is_better)
    front = _front(shown, cost)
    if len(front) > 1:
        places = [model.costs[cost.name] for model in front], [_height(model) for model in front]
        axes.plot(*places, color=ACCENT, linewidth=1.5, zorder=2)
    for model in shown:
        axes.plot(model.costs[cost.name], _height(model), **_mark(model, cost), zorder=3)
    figures = [model.costs[cost.name] for model in shown]
    if cost.name == SECONDS:
        set_time_ticks(axes.xaxis, figures, 3)
    else:
        set_ticks(axes.xaxis, figures, lambda value: result.cost_text(value, cost), 4)
    qualities = [_height(model) for model in group.models if numbers.is_number(model.quality)]
    set_ticks(axes.yaxis, qualities, lambda value: result.quality_text(value, group.quality), 6)
    axes.margins(0.14)
    axes.set_title(_panel_title(cost))
    if not shown:
        axes.text(0.5, 0.5, "no figures", transform=axes.transAxes, ha="center", va="center")


def _draw_level(axes: Axes, model: ComparedModel, *, higher_is_better: bool) -> None:
    """Draw a line at the quality of a model without training time, with its name on the better side."""
    axes.axhline(_height(model), color=SOFT, linewidth=1, linestyle=(0, (5, 4)), zorder=1)
    axes.annotate(
        _label(model),
        (0.99, _height(model)),
        xycoords=axes.get_yaxis_transform(),
        xytext=(0, 3 if higher_is_better else -3),
        textcoords="offset points",
        ha="right",
        va="bottom" if higher_is_better else "top",
        color=TEXT,
    )


def _front(shown: Sequence[ComparedModel], cost: Cost) -> list[ComparedModel]:
    """Return the models on the front, from cheap to expensive."""
    return sorted((model for model in shown if cost.name in model.best_for), key=lambda model: model.costs[cost.name])


def _shown_in(group: RunGroup, cost: Cost) -> list[ComparedModel]:
    """Return the models that are points of a panel."""
    return [model for model in group.models if cost.name in model.costs and numbers.is_number(model.quality)]


def _panel_title(cost: Cost) -> str:
    return f"{cost.label}, share of dense" if cost.relative else cost.label


def _mark(model: ComparedModel, cost: Cost) -> dict[str, Any]:
    shape = "D" if model.number is None else "s" if model.sparse else "o"
    on_front = cost.name in model.best_for
    color = TEXT if model.number is None else ACCENT if on_front else CARD
    edge = TEXT if model.number is None else ACCENT if on_front else CUT
    size = _MARK - 2 if model.number is None else _MARK
    return {
        "marker": shape,
        "markersize": size,
        "markerfacecolor": color,
        "markeredgecolor": edge,
        "markeredgewidth": 1.5,
        "linestyle": "none",
    }


def _place_labels(canvas: Figure, drawn: Sequence[tuple[RunGroup, Sequence[Axes]]]) -> None:
    """Write numbers beside the points, and the names of the starting models.

    Args:
        canvas: the whole canvas; its layout is final from here on.
        drawn: groups with their panels.
    """
    canvas.draw_without_rendering()
    canvas.set_layout_engine("none")
    for group, panels in drawn:
        for cost, axes in zip(group.costs, panels, strict=True):
            _label_points(axes, _shown_in(group, cost), cost)


def _label_points(axes: Axes, models: Sequence[ComparedModel], cost: Cost) -> None:
    points = [_pixels(axes, model, cost) for model in models]
    labels = [_label(model) for model in models]
    sizes = [(0.62 * drawing.FONT_POINTS * len(label), 0.8 * drawing.FONT_POINTS) for label in labels]
    left, bottom, right, top = axes.bbox.extents
    line = [_pixels(axes, model, cost) for model in _front(models, cost)]
    places = label_places(points, sizes, (left, bottom, right, top), gap=_MARK / 2 + 2, taken=list(_along(line)))
    for model, point, label, place in zip(models, points, labels, places, strict=True):
        axes.annotate(
            label,
            (model.costs[cost.name], _height(model)),
            xytext=(place[0] - point[0], place[1] - point[1]),
            textcoords="offset points",
            color=TEXT,
            annotation_clip=False,
            zorder=4,
        )


def _pixels(axes: Axes, model: ComparedModel, cost: Cost) -> tuple[float, float]:
    """Position of a model. One pixel of the page is one point of the figure."""
    x, y = axes.transData.transform((model.costs[cost.name], _height(model)))
    return float(x), float(y)


def _along(line: Sequence[tuple[float, float]]) -> Iterator[Box]:
    """Return small boxes along a line."""
    for (left, start), (right, end) in itertools.pairwise(line):
        steps = max(1, math.ceil(math.hypot(right - left, end - start) / _STEP))
        for step in range(steps + 1):
            x, y = left + (right - left) * step / steps, start + (end - start) * step / steps
            yield (x - 1.5, y - 1.5, x + 1.5, y + 1.5)


def _label(model: ComparedModel) -> str:
    if model.number is not None:
        return str(model.number)
    return "dense" if model.what == "dense" else model.name


def legend(group: RunGroup) -> list[Line2D]:
    """Legend entries for the marks that the group uses."""
    from matplotlib.lines import Line2D

    style: dict[str, Any] = {"linestyle": "none", "markersize": _MARK, "markeredgewidth": 1.5}
    handles = []
    if any(model.best_for for model in group.models if model.number is not None):
        front = {**style, "linestyle": "-", "linewidth": 1.5}
        handles.append(Line2D([], [], marker="o", color=ACCENT, **front, label="on the Pareto front"))
    off = any(set(model.costs) - set(model.best_for) for model in group.models if model.number is not None)
    if off:
        other = {**style, "markerfacecolor": CARD, "markeredgecolor": CUT}
        handles.append(Line2D([], [], marker="o", **other, label="other run"))
    if any(model.sparse for model in group.models):
        label = "sparse (counted without zeros)"
        handles.append(Line2D([], [], marker="s", markerfacecolor=CARD, markeredgecolor=CUT, **style, label=label))
    if any(model.number is None for model in group.models):
        dense = {**style, "markersize": _MARK - 2}
        only = all(model.what == "dense" for model in group.models if model.number is None)
        label = "dense model" if only else "model before the runs"
        handles.append(Line2D([], [], marker="D", color=TEXT, **dense, label=label))
    return handles


def _zones(group: RunGroup, panels: Sequence[Axes]) -> list[Zone]:
    """Return an invisible square around every point, with all details of its model."""
    zones = []
    for cost, axes in zip(group.costs, panels, strict=True):
        for model in _shown_in(group, cost):
            x, y = _pixels(axes, model, cost)
            corners = axes.transData.inverted().transform([(x - _HIT, y - _HIT), (x + _HIT, y + _HIT)])
            (left, bottom), (right, top) = corners
            text = result.model_in_words(model, group)
            zones.append(Zone(axes=(axes,), left=left, right=right, bottom=bottom, top=top, texts=(text,)))
    return zones


def _description(group: RunGroup) -> str:
    """Describe the figure in text, with every value."""
    costs = ", ".join(cost.label.lower() for cost in group.costs)
    listed = "; ".join(result.model_in_words(model, group) for model in group.models)
    return f"{group.quality.label} against {costs}. {listed}."


def _height(model: ComparedModel) -> float:
    """Vertical position of a model."""
    return math.nan if model.quality is None else model.quality


# The figure of a comparison as a separate file, with a key to its numbers.

_WIDTH = 900.0
_TITLE_HEIGHT = 24.0
_KEY_HEIGHT = 18.0
_KEY_GAP = 48.0


def write_picture(comparison: RunsComparison, path: str | Path) -> None:
    """Write only the figure, as SVG, PNG or PDF. The file is written atomically.

    Raises:
        ValueError: ``path`` has none of these suffixes.
    """
    picture_files.check_picture(Path(path))
    with _canvas(comparison.groups, _WIDTH) as canvas:
        picture_files.save_picture(canvas, Path(path))


@contextmanager
def _canvas(groups: Sequence[RunGroup], width: float) -> Iterator[Figure]:
    """Draw all groups on one canvas for a separate file, with a row for each group."""
    columns = max(len(group.costs) for group in groups)
    names = [len(model.name) for group in groups for model in group.models]
    key_columns = max(1, int(width // (_KEY_GAP + 0.65 * drawing.FONT_POINTS * max(names))))
    keys = [math.ceil(len(group.models) / key_columns) * _KEY_HEIGHT for group in groups]
    heights = [PANEL_HEIGHT + _TITLE_HEIGHT + LEGEND_HEIGHT + key for key in keys]
    with drawing.drawing(width, sum(heights)) as canvas:
        parts = canvas.subfigures(len(groups), 1, squeeze=False, height_ratios=heights)[:, 0]
        rows = []
        for group, part in zip(groups, parts, strict=True):
            part.set_facecolor("none")
            panels = list(part.subplots(1, columns, squeeze=False, sharey="row").flat)
            for unused in panels[len(group.costs) :]:
                unused.set_axis_off()
            rows.append(panels[: len(group.costs)])
            _draw_group(group, rows[-1])
            marks = part.legend(handles=legend(group), loc="outside upper left", ncols=4, alignment="left")
            if len(groups) > 1:
                detail = f" ({group.quality.detail})" if group.quality.detail else ""
                marks.set_title(group.title + detail, prop={"weight": "bold"})
            style: dict[str, Any] = {"ncols": key_columns, "handlelength": 0, "handletextpad": 0}
            part.legend(handles=_key(group), loc="outside lower left", **style)
        _place_labels(canvas, list(zip(groups, rows, strict=True)))
        yield canvas


def _key(group: RunGroup) -> list[Line2D]:
    """Key of numbers and run names, for a figure shown without its table."""
    from matplotlib.lines import Line2D

    numbered = [model for model in group.models if model.number is not None]
    return [Line2D([], [], linestyle="none", label=f"{model.number} {model.name}") for model in numbered]
