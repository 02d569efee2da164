"""The chart of a training run: loss and removed share over the steps, with the cuts marked in both.

Of a run that prunes nothing, the loss alone.
"""

from __future__ import annotations

import bisect
import itertools
import math
from typing import TYPE_CHECKING

from loraprune.report import numbers, panel, scales, svg
from loraprune.report.panel import Panel
from loraprune.report.series import moving_average, thin_out, unbroken

if TYPE_CHECKING:
    from collections.abc import Sequence

    from loraprune.report.data import Cut, HistoryPoint, ReportData
    from loraprune.report.scales import Scale
    from loraprune.report.series import Points

_HEADING_HEIGHT = 30.0
_LOSS_HEIGHT = 190.0
_RATIO_HEIGHT = 110.0
_GAP = 44.0
_MAX_TOOLTIPS = 200
_MAX_CUT_DOTS = 60
_MIN_CUT_PITCH = 12.0
_CUT_TICK = 6.0
_MIN_AVERAGED = 200


def training_chart(data: ReportData, width: float) -> str:
    """Draw loss and removed share of a run with at least one step.

    The loss is drawn as it was logged; in a long run that line is faint, and a moving average, which does not reach
    over cuts, is laid on it. Steps without a finite loss leave a gap.
    """
    history, cuts = data.history, data.cuts
    losses = [point.loss for point in history if math.isfinite(point.loss)]
    low, high = scales.nice_domain(losses, 4)
    loss_ticks = scales.ticks(low, high, 4)
    top = _ratio_top(data)
    ratio_ticks = [(value / 100, f"{text} %") for value, text in scales.ticks(0, 100 * top, 4)]
    prunes = data.recovery is None
    left = panel.margin_for(loss_ticks, ratio_ticks)
    upper = Panel(
        left=left, right=width - panel.SIDE_MARGIN, top=_HEADING_HEIGHT, bottom=_HEADING_HEIGHT + _LOSS_HEIGHT
    )
    lower_top = upper.bottom + _GAP
    share = Panel(left=left, right=upper.right, top=lower_top, bottom=lower_top + _RATIO_HEIGHT)
    lower = share if prunes else upper
    x = upper.x_scale(0, max(1, *(point.step for point in history), *(cut.step for cut in cuts)))
    y_loss, y_ratio = upper.y_scale(low, high), share.y_scale(0, top)
    steps = [(x(step), text) for step, text in scales.ticks(0, x.high, max(2, round(width / 100)), whole=True)]
    return svg.picture(
        width,
        lower.bottom + panel.AXIS_HEIGHT,
        _description(data),
        panel.heading(upper, "Loss", f"{numbers.significant(history[-1].loss)} at the end"),
        panel.horizontal_grid(upper, y_loss, loss_ticks),
        *(
            (
                panel.heading(share, f"Share {_gone(data)}", _reached(data)),
                panel.horizontal_grid(share, y_ratio, ratio_ticks),
            )
            if prunes
            else ()
        ),
        _cut_lines(cuts, x, (upper, share)),
        _loss_lines(data, x, y_loss),
        *(
            (_target_line(data.headline.target_ratio, share, y_ratio), _ratio_line(history, x, y_ratio))
            if prunes
            else ()
        ),
        panel.horizontal_axis(lower, steps, "training step"),
        _tooltips(data, x, upper, lower),
        _cut_dots(data, x, y_ratio),
    )


def _ratio_top(data: ReportData) -> float:
    """Leave a little room above the greatest share."""
    ratios = [data.headline.target_ratio, *(point.ratio for point in data.history), *(cut.ratio for cut in data.cuts)]
    return 1.1 * max((ratio for ratio in ratios if math.isfinite(ratio)), default=0.0) or 1.0


def _reached(data: ReportData) -> str:
    reached, target = data.history[-1].ratio, data.headline.target_ratio
    wanted = f" (target {numbers.percent(target)})" if math.isfinite(target) else ""
    return numbers.percent(reached) + wanted


def _description(data: ReportData) -> str:
    first, last = data.history[0], data.history[-1]
    if data.recovery is not None:
        return (
            f"Loss over {last.step:,} training steps, from {numbers.significant(first.loss)} to "
            f"{numbers.significant(last.loss)}."
        )
    return (
        f"Loss and share {_gone(data)} over {last.step:,} training steps. Loss from {numbers.significant(first.loss)} "
        f"to {numbers.significant(last.loss)}; share {_gone(data)} from {numbers.percent(first.ratio)} to "
        f"{numbers.percent(last.ratio)}, in {len(data.cuts)} {'masks' if data.headline.sparsity else 'cuts'}."
    )


def _gone(data: ReportData) -> str:
    """What became of the share: of a sparse model nothing is removed."""
    return "of zeros" if data.headline.sparsity is not None else "removed"


def _loss_lines(data: ReportData, x: Scale, y: Scale) -> str:
    steps = [point.step for point in data.history]
    losses = [point.loss for point in data.history]
    lines = [("line", losses)]
    if len(losses) >= _MIN_AVERAGED:
        ends = [bisect.bisect_right(steps, cut.step) for cut in data.cuts]
        lines = [("line faint", losses), ("line", moving_average(losses, len(losses) // 50, ends))]
    parts = []
    for name, values in lines:
        points = [(float(step), value) for step, value in zip(steps, values, strict=True)]
        for run in unbroken(thin_out(points, round(x.end - x.start))):
            placed = [(x(step), y(value)) for step, value in run]
            parts.append(svg.polyline(placed, name) if len(placed) > 1 else _dot(*placed[0]))
    middle = (x.start + x.end) / 2
    return "".join(parts) or svg.label(middle, (y.start + y.end) / 2 - 10, "no finite loss", anchor="middle")


def _ratio_line(history: Sequence[HistoryPoint], x: Scale, y: Scale) -> str:
    """Draw the removed share as steps, filled below: it changes at a cut and stays."""
    points = thin_out([(float(point.step), point.ratio) for point in history], round(x.end - x.start))
    stairs: Points = []
    for step, ratio in points:
        if math.isfinite(ratio):
            place = (x(step), y(ratio))
            stairs += [(place[0], stairs[-1][1]), place] if stairs else [place]
    if not stairs:
        return ""
    if len(stairs) == 1:
        return _dot(*stairs[0])
    floor = [(stairs[-1][0], y.start), (stairs[0][0], y.start)]
    return svg.polyline(stairs + floor, "area") + svg.polyline(stairs, "line")


def _target_line(target: float, lower: Panel, y: Scale) -> str:
    return svg.line(lower.left, y(target), lower.right, y(target), "target") if math.isfinite(target) else ""


def _cut_lines(cuts: Sequence[Cut], x: Scale, panels: Sequence[Panel]) -> str:
    """Mark the cuts in every panel: by lines through it, or by ticks at its top where lines would merge."""
    crowded = len(cuts) * _MIN_CUT_PITCH > x.end - x.start
    style = "cut crowded" if crowded else "cut"
    return "".join(
        svg.line(x(cut.step), area.top, x(cut.step), area.top + _CUT_TICK if crowded else area.bottom, style)
        for cut in cuts
        for area in panels
    )


def _cut_dots(data: ReportData, x: Scale, y: Scale) -> str:
    shown = [cut for cut in data.cuts if math.isfinite(cut.ratio)]
    if len(shown) > _MAX_CUT_DOTS:
        return ""
    name, gone = ("Masks", "zero") if data.headline.sparsity is not None else ("Cut", "removed")
    return "".join(
        _dot(x(cut.step), y(cut.ratio), f"{name} at step {cut.step:,}: {numbers.percent(cut.ratio)} {gone}")
        for cut in shown
    )


def _dot(x: float, y: float, text: str = "") -> str:
    return svg.element("circle", *([svg.title(text)] if text else []), cx=x, cy=y, r=3.5, class_="dot")


def _tooltips(data: ReportData, x: Scale, upper: Panel, lower: Panel) -> str:
    """Lay invisible columns over both panels that tell the values of a step under the pointer."""
    stride = math.ceil(len(data.history) / _MAX_TOOLTIPS)
    points = data.history[::stride]
    centers = [x(point.step) for point in points]
    edges = [upper.left, *((a + b) / 2 for a, b in itertools.pairwise(centers)), upper.right]
    height = lower.bottom - upper.top
    return "".join(
        svg.rectangle(left, upper.top, max(0.0, right - left), height, "hover", svg.title(_step_text(point, data)))
        for point, left, right in zip(points, edges[:-1], edges[1:], strict=True)
    )


def _step_text(point: HistoryPoint, data: ReportData) -> str:
    text = f"Step {point.step:,}: loss {numbers.significant(point.loss)}"
    prunes, sparse = data.recovery is None, data.headline.sparsity is not None
    if prunes:
        text += f", {numbers.percent(point.ratio)} {'zero' if sparse else 'removed'}"
    if prunes and not sparse and point.parameters is not None:
        text += f", {numbers.count(point.parameters)} parameters"
    return text + (f", {numbers.duration(point.seconds)}" if numbers.is_number(point.seconds) else "")
