"""Figure of a training run: loss and removed share over the steps, with the cuts marked in both.

For a recovery run, the figure has only the loss.
"""

from __future__ import annotations

import bisect
import itertools
import math
from typing import TYPE_CHECKING

from loraprune.record import numbers
from loraprune.report import drawing
from loraprune.report.drawing import ACCENT, CARD, CUT, SOFT, WASH, Zone
from loraprune.report.figure import FULL_WIDTH, Figure
from loraprune.report.figures.series import alone, moving_average, thin_out

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes

    from loraprune.record.report_data import HistoryPoint, ReportData
    from loraprune.report.figures.series import Points

_LOSS_HEIGHT = 240.0
_SHARE_HEIGHT = 160.0
_AXIS_HEIGHT = 40.0
_MAX_ZONES = 200
_MAX_CUT_DOTS = 60
_MIN_CUT_PITCH = 12.0
_MIN_AVERAGED = 20
_LEAST_WINDOW = 5
_MAX_WINDOWS = 50


def training_figure(data: ReportData) -> Figure:
    """Draw a run with at least one step."""
    if not data.cuts:
        caption = "Loss on the training data."
    elif data.headline.sparsity is not None:
        caption = "Vertical lines mark new masks: the loss may rise there and fall again with further tuning."
    else:
        caption = "Vertical lines mark cuts: the loss may rise there and fall again with further tuning."
    if len(data.history) >= _MIN_AVERAGED:
        over = " that restarts at each of them" if data.cuts else ""
        caption += f" The strong line is a moving average{over}; the faint one is the loss itself."
    if data.evaluations:
        caption += " Dots: loss on held-out rows."
        taken = next((point.step for point in data.evaluations if point.taken), None)
        caption += "" if taken is None else f" The result has the adapter of step {taken}."
    what = "Loss" if not _prunes(data) else "Loss and size" if data.headline.sparsity is None else "Loss and zeros"
    return Figure(title=f"{what} over the run", markup=_picture(data), caption=caption, full=True)


def _picture(data: ReportData) -> str:
    prunes = _prunes(data)
    heights = (_LOSS_HEIGHT, _SHARE_HEIGHT) if prunes else (_LOSS_HEIGHT,)
    with drawing.drawing(FULL_WIDTH, sum(heights) + _AXIS_HEIGHT) as canvas:
        panels = canvas.subplots(len(heights), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
        _draw_loss(data, panels[0])
        if prunes:
            _draw_share(data, panels[1])
        for axes in panels:
            _mark_cuts(data, axes)
        _draw_steps(data, panels[-1])
        return drawing.svg_of(canvas, training_description(data), _zones(data, tuple(panels)))


def _draw_loss(data: ReportData, axes: Axes) -> None:
    """Draw the logged loss. With enough points, it is faint, under a moving average that restarts at each cut."""
    steps = [point.step for point in data.history]
    losses = [point.loss if math.isfinite(point.loss) else math.nan for point in data.history]
    lines = [(losses, 2.0, 1.0)]
    if len(losses) >= _MIN_AVERAGED:
        ends = [bisect.bisect_right(steps, cut.step) for cut in data.cuts]
        lines = [
            (losses, 1.0, 0.45),
            (moving_average(losses, max(_LEAST_WINDOW, len(losses) // _MAX_WINDOWS), ends), 2.0, 1.0),
        ]
    for values, thickness, alpha in lines:
        points = thin_out([(float(step), value) for step, value in zip(steps, values, strict=True)], round(FULL_WIDTH))
        axes.plot(*zip(*points, strict=True), color=ACCENT, linewidth=thickness, alpha=alpha)
        if single := alone(points):
            axes.plot(*zip(*single, strict=True), "o", color=ACCENT, markersize=6)
    if not any(map(math.isfinite, losses)):
        axes.text(0.5, 0.5, "no finite loss", transform=axes.transAxes, ha="center", va="center")
        axes.set_yticks([])
    _draw_evaluations(data, axes)
    axes.set_title("Loss")
    last = numbers.significant(data.history[-1].loss)
    axes.set_title(f"{last} at the end" if last != numbers.MISSING else "", loc="right")


def _draw_evaluations(data: ReportData, axes: Axes) -> None:
    """Mark the loss on held-out rows; a solid dot is the step whose adapter the result has."""
    points = [point for point in data.evaluations if math.isfinite(point.loss)]
    if points:
        axes.plot([p.step for p in points], [p.loss for p in points], color=CUT, linewidth=1.5, zorder=2.5)
        for point in points:
            face = CUT if point.taken else CARD
            axes.plot(point.step, point.loss, "o", color=CUT, markerfacecolor=face, markersize=5, zorder=3)


def _draw_share(data: ReportData, axes: Axes) -> None:
    """Draw the removed share as steps, filled below, because it changes only at cuts."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    points = thin_out(_shares(data), round(FULL_WIDTH))
    steps, ratios = [step for step, _ in points], [ratio for _, ratio in points]
    axes.fill_between(steps, ratios, step="post", color=WASH, linewidth=0)
    axes.step(steps, ratios, where="post", color=ACCENT)
    target = data.headline.target_ratio
    if math.isfinite(target):
        axes.axhline(target, color=SOFT, linewidth=1, dashes=(5, 4))
    shown = [cut for cut in data.cuts if math.isfinite(cut.ratio)]
    if len(shown) <= _MAX_CUT_DOTS:
        places = [cut.step for cut in shown], [cut.ratio for cut in shown]
        axes.plot(*places, "o", color=ACCENT, markeredgecolor=CARD, markersize=7, clip_on=False, zorder=3)
    known = [target, *ratios, *(cut.ratio for cut in shown)]
    axes.set_ylim(0, 1.1 * max((ratio for ratio in known if math.isfinite(ratio)), default=0.0) or 1.0)
    axes.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g} %"))
    axes.set_title(f"Share {_gone(data)}")
    axes.set_title(_reached(data), loc="right")


def _shares(data: ReportData) -> Points:
    """Removed share after each step that was logged or had a cut; 0 before the first cut."""
    known = {point.step: point.ratio for point in data.history} | {cut.step: cut.ratio for cut in data.cuts}
    if data.cuts:
        known.setdefault(0, 0.0)
    return [(float(step), ratio) for step, ratio in sorted(known.items()) if math.isfinite(ratio)]


def _mark_cuts(data: ReportData, axes: Axes) -> None:
    """Mark the cuts by lines through the panel, or by ticks at its top if lines would merge."""
    crowded = len(data.cuts) * _MIN_CUT_PITCH > FULL_WIDTH
    for cut in data.cuts:
        style = {"ymin": 0.96} if crowded else {"linestyle": (0, (2, 3))}
        axes.axvline(cut.step, color=CUT, linewidth=1, zorder=0.5, **style)


def _draw_steps(data: ReportData, axes: Axes) -> None:
    from matplotlib.ticker import MaxNLocator, StrMethodFormatter

    last = max(1, data.steps or 0, *(point.step for point in data.history), *(cut.step for cut in data.cuts))
    axes.set_xlim(0, last * 1.005)
    axes.xaxis.set_major_locator(MaxNLocator(9, integer=True))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.set_xlabel("training step")


def training_description(data: ReportData) -> str:
    """Describe the figure in text, with the first and the last values."""
    first, last = data.history[0], data.history[-1]
    steps = f"{data.steps or last.step:,} training steps"
    loss = f"from {numbers.significant(first.loss)} to {numbers.significant(last.loss)}"
    if data.evaluations:
        loss += f", on held-out rows {numbers.significant(data.evaluations[-1].loss)}"
    if not _prunes(data):
        return f"Loss over {steps}, {loss}."
    share = f"from {numbers.percent(first.ratio)} to {numbers.percent(last.ratio)}"
    cuts = "masks" if data.headline.sparsity else "cuts"
    return (
        f"Loss and share {_gone(data)} over {steps}. Loss {loss}; "
        f"share {_gone(data)} {share}, in {len(data.cuts)} {cuts}."
    )


def _prunes(data: ReportData) -> bool:
    return data.recovery is None


def _reached(data: ReportData) -> str:
    reached, target = data.history[-1].ratio, data.headline.target_ratio
    wanted = f" (target {numbers.percent(target)})" if math.isfinite(target) else ""
    return numbers.percent(reached) + wanted if math.isfinite(reached) else ""


def _gone(data: ReportData) -> str:
    """Word for the share: a sparse model has nothing removed."""
    return "of zeros" if data.headline.sparsity is not None else "removed"


def _zones(data: ReportData, panels: Sequence[Axes]) -> list[Zone]:
    """Hover zones over all panels with the values of a step."""
    points = data.history[:: math.ceil(len(data.history) / _MAX_ZONES)]
    first, last = panels[0].get_xlim()
    edges = [first, *((a.step + b.step) / 2 for a, b in itertools.pairwise(points)), last]
    return [
        Zone(axes=tuple(panels), left=left, right=right, texts=(_step_text(point, data),))
        for point, (left, right) in zip(points, itertools.pairwise(edges), strict=True)
    ]


def _step_text(point: HistoryPoint, data: ReportData) -> str:
    text = f"Step {point.step:,}: loss {numbers.significant(point.loss)}"
    sparse = data.headline.sparsity is not None
    if _prunes(data):
        text += f", {numbers.percent(point.ratio)} {'zero' if sparse else 'removed'}"
    if _prunes(data) and not sparse and point.parameters is not None:
        text += f", {numbers.count(point.parameters)} parameters"
    return text + (f", {numbers.duration(point.seconds)}" if numbers.is_number(point.seconds) else "")
