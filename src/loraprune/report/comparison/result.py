"""Result of a comparison of runs: plain values, Pareto fronts, and the format of figures."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from loraprune.record import codec, numbers
from loraprune.record.report_data import Unit

_FORMAT = "loraprune-comparison"
_FORMAT_VERSION = 1

PARAMETERS, LATENCY, SECONDS = "parameters", "latency", "seconds"
"""Names of the costs that quality is compared against."""


@dataclass(frozen=True, kw_only=True)
class Quality:
    """The quality measure that a group of models shares.

    Attributes:
        name: name for ``--quality``.
        label: name for the reader: ``"Held-out perplexity"``.
        unit: unit of the figures.
        detail: data and conditions, the same for the whole group.
        higher_is_better: whether a higher figure is better.
    """

    name: str
    label: str
    unit: Unit
    detail: str = ""
    higher_is_better: bool = False


@dataclass(frozen=True, kw_only=True)
class Cost:
    """A cost that quality is compared against. Less is better.

    Attributes:
        name: :data:`PARAMETERS`, :data:`LATENCY` or :data:`SECONDS`.
        label: name for the reader: ``"Forward pass"``.
        detail: conditions of the measurement.
        relative: whether figures are factors, each relative to the model's own dense one.
        why_no_front: reason why the figures cannot be ranked and no front is marked; empty if they can.
    """

    name: str
    label: str
    detail: str = ""
    relative: bool = False
    why_no_front: str = ""


@dataclass(frozen=True, kw_only=True)
class ComparedModel:
    """One point of the comparison.

    Attributes:
        number: its number in the figure; None for a starting model.
        name: name of the run.
        folder: its path as given, or the name of a model.
        what: description: ``"2:4 sparse by wanda"``, ``"dense"``.
        quality: in the unit of its group, or None if the figure is not finite.
        costs: figures by name of the cost; unknown costs are missing.
        best_for: names of the costs on whose Pareto front it lies.
        sparse: whether its parameter count leaves out zeros, which are stored all the same.
        stored_parameters: all parameters.
        bytes: size of the weights as a file.
        latency_ms: measured latency of a forward pass.
        relative_latency: latency as a factor of its dense model's, timed alternately.
    """

    number: int | None
    name: str
    folder: str
    what: str = ""
    quality: float | None
    costs: Mapping[str, float] = field(default_factory=dict)
    best_for: tuple[str, ...] = ()
    sparse: bool = False
    stored_parameters: float | None = None
    bytes: float | None = None
    latency_ms: float | None = None
    relative_latency: float | None = None


@dataclass(frozen=True, kw_only=True)
class RunGroup:
    """Models whose qualities are comparable.

    Attributes:
        base: the dense model, or several, comma-separated.
        quality: the measure.
        costs: parameters, and the other costs for which any model has a figure.
        models: starting models first, then the runs in the given order.
        notes: remarks for the reader.
    """

    base: str
    quality: Quality
    costs: tuple[Cost, ...]
    models: tuple[ComparedModel, ...]
    notes: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """The base and the measure in one line."""
        return f"{self.base}: {self.quality.label}" if self.base else self.quality.label


@dataclass(frozen=True, kw_only=True)
class RunsComparison:
    """Comparison of several runs.

    Attributes:
        groups: groups of comparable figures; figures of different groups are not comparable.
        other_qualities: names of further measures that the runs have.
        notes: reasons for several groups, runs left out, and similar remarks.
        created: time, ISO 8601.
        versions: versions of the libraries that made the comparison.
        command: the command line, or empty.
    """

    groups: tuple[RunGroup, ...]
    other_qualities: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    created: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    command: str = ""

    @property
    def title(self) -> str:
        """Heading of the page."""
        numbers = {model.name for group in self.groups for model in group.models if model.number is not None}
        return f"{len(numbers)} runs compared" if len(numbers) > 1 else f"{next(iter(numbers), 'Models')} compared"

    def to_json(self) -> dict[str, Any]:
        """All content as plain values that strict JSON supports."""
        encoded = codec.encode(self)
        assert isinstance(encoded, dict)
        return {"format": _FORMAT, "version": _FORMAT_VERSION, **encoded}

    def to_text(self) -> str:
        """The same content as JSON text."""
        return json.dumps(self.to_json(), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


# The Pareto front: models that no other model beats in both quality and cost.


def pareto_front(
    costs: Sequence[float | None], qualities: Sequence[float | None], *, higher_is_better: bool
) -> tuple[bool, ...]:
    """For each candidate, tell whether it lies on the front.

    A candidate is off the front if another one is at least as good in both and better in one. Equal candidates are
    either all on the front or all off it. A candidate without a cost or a quality (None, NaN or infinite) is off the
    front and has no effect on the others.

    Args:
        costs: costs of the candidates; lower is better.
        qualities: qualities of the same candidates.
        higher_is_better: whether a higher quality is better (accuracy) or worse (perplexity).

    Raises:
        ValueError: the numbers of costs and qualities differ.
    """
    if len(costs) != len(qualities):
        raise ValueError(f"There are {len(costs)} costs and {len(qualities)} qualities. Give both per candidate.")
    points: dict[int, tuple[float, float]] = {}
    for index, (cost, quality) in enumerate(zip(costs, qualities, strict=True)):
        if cost is not None and quality is not None and math.isfinite(cost) and math.isfinite(quality):
            points[index] = (cost, -quality if higher_is_better else quality)
    on_front = [False] * len(costs)
    best = math.inf
    # From cheap to expensive: the front has each model that is better than all cheaper ones and equals the best of its
    # cost.
    for cost in sorted({cost for cost, _ in points.values()}):
        here = min(quality for price, quality in points.values() if price == cost)
        if here < best:
            best = here
            for index, point in points.items():
                on_front[index] = on_front[index] or point == (cost, here)
    return tuple(on_front)


# Text of figures, the same in the terminal, on the page and in hover texts.

STAR = "\N{BLACK STAR}"

_EXACT_SECONDS = 9.5
"""Below this, whole seconds would hide which of two runs was shorter."""


def quality_text(value: float | None, quality: Quality) -> str:
    """Format a quality figure."""
    return numbers.percent(value) if quality.unit is Unit.ACCURACY else numbers.significant(value)


def cost_text(value: float | None, cost: Cost) -> str:
    """Format a cost figure."""
    if cost.name == PARAMETERS:
        return numbers.count(value)
    if cost.name == LATENCY:
        return numbers.percent(value) if cost.relative else numbers.milliseconds(value)
    if value is not None and 0 < value < _EXACT_SECONDS:
        return f"{numbers.significant(value, 2)} s"
    return numbers.duration(value)


def quality_direction(quality: Quality) -> str:
    """State which direction is better."""
    return "higher is better" if quality.higher_is_better else "lower is better"


def model_kind(model: ComparedModel) -> str:
    """Describe a model; empty if nothing is known."""
    return f"{model.what}, sparse" if model.sparse and "sparse" not in model.what else model.what


def model_in_words(model: ComparedModel, group: RunGroup) -> str:
    """Describe a model completely in one line."""
    what = f" ({model_kind(model)})" if model.what else ""
    number = "" if model.number is None else f"{model.number} "
    parts = [f"{group.quality.label} {quality_text(model.quality, group.quality)}"]
    for cost in group.costs:
        if cost.name in model.costs:
            best = f" {STAR}" if cost.name in model.best_for else ""
            parts.append(f"{cost.label.lower()} {cost_text(model.costs[cost.name], cost)}{best}")
    return f"{number}{model.name}{what}: {', '.join(parts)}"


def front_legend(groups: tuple[RunGroup, ...]) -> str:
    """Explain the star; empty if no model has one."""
    if not any(model.best_for for group in groups for model in group.models):
        return ""
    among = "in its group" if len(groups) > 1 else "here"
    return (
        f"{STAR} on the Pareto front: no other model {among} is as good in quality and this column, and better in one."
    )
