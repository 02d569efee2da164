"""What a comparison of runs tells: plain values, Pareto fronts, and how figures are written."""

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
"""Names of the costs that quality is held against."""


@dataclass(frozen=True, kw_only=True)
class Quality:
    """The measure of quality that a group of models shares.

    Attributes:
        name: what ``--quality`` calls it.
        label: what the reader sees: ``"Held-out perplexity"``.
        unit: of the figures.
        detail: what it was measured on and how; the same for all of the group.
        higher_is_better: whether a high figure is a good one.
    """

    name: str
    label: str
    unit: Unit
    detail: str = ""
    higher_is_better: bool = False


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Something that quality is held against; less of it is better.

    Attributes:
        name: :data:`PARAMETERS`, :data:`LATENCY` or :data:`SECONDS`.
        label: what the reader sees: ``"Forward pass"``.
        detail: how it was measured.
        relative: whether figures are factors, each to a model's own dense one.
        why_no_front: why the figures cannot be ranked, so that no front is marked; empty where they can.
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
        number: that stands for it in the picture; None of a model that runs began with.
        name: of the run.
        folder: its place as it was given, or the name of a model.
        what: what it is: ``"50% pruned by fisher"``, ``"dense"``.
        quality: in the unit of its group, or None where the figure is not finite.
        costs: figures by name of the cost; one that is unknown is missing.
        best_for: names of the costs on whose Pareto front it lies.
        sparse: whether its parameters are counted without those that are zero, which are stored all the same.
        stored_parameters: all parameters.
        bytes: size of the weights as a file.
        latency_ms: of a forward pass, as measured.
        relative_latency: the same as a factor to the latency of its dense model, timed in turns with it.
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
    """Models whose qualities compare with each other.

    Attributes:
        base: the dense model, or several, comma-separated.
        quality: the measure.
        costs: parameters, and those that any of the models has a figure of.
        models: those that runs began with first, then the runs in the order given.
        notes: what the reader has to know.
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
    """Several runs side by side.

    Attributes:
        groups: within each, figures compare; between them they do not.
        other_qualities: names of further measures that the runs have.
        notes: why there are several groups, which runs are left out, and the like.
        created: time, ISO 8601.
        versions: of the libraries that compared.
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
        """Everything as plain values that strict JSON can hold."""
        encoded = codec.encode(self)
        assert isinstance(encoded, dict)
        return {"format": _FORMAT, "version": _FORMAT_VERSION, **encoded}

    def to_text(self) -> str:
        """The same as text."""
        return json.dumps(self.to_json(), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


# The Pareto front: what nothing else beats in quality and in cost at once.


def pareto_front(
    costs: Sequence[float | None], qualities: Sequence[float | None], *, higher_is_better: bool
) -> tuple[bool, ...]:
    """Tell of each candidate whether it lies on the front.

    A candidate is off it if another one is at least as good in both and better in one. Of candidates that are equal in
    both, all lie on the front or none. One without a cost or a quality (None, NaN or infinite) does not, and beats
    nothing.

    Args:
        costs: of the candidates; lower is better.
        qualities: of the same candidates.
        higher_is_better: whether a high quality is a good one (accuracy) or a bad one (perplexity).

    Raises:
        ValueError: there is not one quality for each cost.
    """
    if len(costs) != len(qualities):
        raise ValueError(f"There are {len(costs)} costs and {len(qualities)} qualities. Give one of each a candidate.")
    points: dict[int, tuple[float, float]] = {}
    for index, (cost, quality) in enumerate(zip(costs, qualities, strict=True)):
        if cost is not None and quality is not None and math.isfinite(cost) and math.isfinite(quality):
            points[index] = (cost, -quality if higher_is_better else quality)
    on_front = [False] * len(costs)
    best = math.inf
    # From cheap to dear: on the front is what is better than all that is cheaper, and equals the best of its own cost.
    for cost in sorted({cost for cost, _ in points.values()}):
        here = min(quality for price, quality in points.values() if price == cost)
        if here < best:
            best = here
            for index, point in points.items():
                on_front[index] = on_front[index] or point == (cost, here)
    return tuple(on_front)


# Figures of a comparison as text, alike in the terminal, on the page and under the pointer.

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


def quality_direction(quality: Quality) -> str:
    """Which way is better."""
    return "higher is better" if quality.higher_is_better else "lower is better"


def model_kind(model: ComparedModel) -> str:
    """What a model is; of one that nothing is known of, nothing."""
    return f"{model.what}, sparse" if model.sparse and "sparse" not in model.what else model.what


def model_in_words(model: ComparedModel, group: RunGroup) -> str:
    """Everything about a model in one line."""
    what = f" ({model_kind(model)})" if model.what else ""
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
