"""Figures of a comparison as text, alike in the terminal, on the page and under the pointer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from loraprune.record import numbers
from loraprune.record.report_data import Unit
from loraprune.report.comparison.result import LATENCY, PARAMETERS

if TYPE_CHECKING:
    from loraprune.report.comparison.result import ComparedModel, Cost, Quality, RunGroup

STAR = "\N{BLACK STAR}"

_EXACT_SECONDS = 9.5
"""Below, whole seconds would hide which of two runs was shorter."""


def quality_text(value: float | None, quality: Quality) -> str:
    """A figure of quality."""
    return numbers.percent(value) if quality.unit is Unit.ACCURACY else numbers.significant(value)


def cost_text(value: float | None, cost: Cost) -> str:
    """A figure of a cost."""
    if cost.name == PARAMETERS:
        return numbers.count(value)
    if cost.name == LATENCY:
        return numbers.percent(value) if cost.relative else numbers.milliseconds(value)
    if value is not None and 0 < value < _EXACT_SECONDS:
        return f"{numbers.significant(value, 2)} s"
    return numbers.duration(value)


def direction(quality: Quality) -> str:
    """Which way is better."""
    return "higher is better" if quality.higher_is_better else "lower is better"


def kind_of(model: ComparedModel) -> str:
    """What a model is; of one that nothing is known of, nothing."""
    return f"{model.what}, sparse" if model.sparse and "sparse" not in model.what else model.what


def in_words(model: ComparedModel, group: RunGroup) -> str:
    """Everything about a model in one line."""
    what = f" ({kind_of(model)})" if model.what else ""
    number = "" if model.number is None else f"{model.number} "
    parts = [f"{group.quality.label} {quality_text(model.quality, group.quality)}"]
    for cost in group.costs:
        if cost.name in model.costs:
            best = f" {STAR}" if cost.name in model.best_for else ""
            parts.append(f"{cost.label.lower()} {cost_text(model.costs[cost.name], cost)}{best}")
    return f"{number}{model.name}{what}: {', '.join(parts)}"


def front_legend(groups: tuple[RunGroup, ...]) -> str:
    """What the star means; empty where nothing has one."""
    if not any(model.best_for for group in groups for model in group.models):
        return ""
    among = "in its group" if len(groups) > 1 else "here"
    return (
        f"{STAR} on the Pareto front: nothing else {among} is as good in quality and in this column and better in one."
    )
