"""The measures of a task: which number of a run's metrics each is, and how reports and model cards call it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from loraprune.record.report_data import Unit

Metrics = Mapping[str, Any]
"""Measures of one model: an entry of ``metrics["dense"]`` and the like."""


def _nothing(metrics: Metrics) -> str:
    return ""


@dataclass(frozen=True, kw_only=True)
class Measure:
    """One measure.

    Attributes:
        key: its name in the metrics of a model.
        label: what the report calls it.
        unit: decides how it is written.
        detail: how it was measured, from the metrics of the pruned model.
        card: what the model card calls it, from the same; None leaves it out there.
    """

    key: str
    label: str
    unit: Unit
    detail: Callable[[Metrics], str] = _nothing
    card: Callable[[Metrics], str] | None = None

    @property
    def of_quality(self) -> bool:
        """Whether it is measured on held-out rows, and not the size or the speed of the model."""
        return self.unit in (Unit.PERPLEXITY, Unit.ACCURACY)


PARAMETERS = Measure(key="parameters", label="Parameters", unit=Unit.PARAMETERS, card=lambda _: "parameters")
NONZERO = Measure(
    key="nonzero", label="Weights that are not zero", unit=Unit.PARAMETERS, card=lambda _: "weights that are not zero"
)
FILE_SIZE = Measure(key="bytes", label="File size", unit=Unit.BYTES, detail=lambda _: "weights in safetensors")
FORWARD_PASS = Measure(
    key="latency_ms",
    label="Forward pass",
    unit=Unit.MILLISECONDS,
    detail=lambda metrics: f"{metrics.get('latency_input')}, median, taking turns",
    card=lambda metrics: f"forward pass, {metrics.get('latency_input')} (ms)",
)
CARD_FORMATS = {
    Unit.PARAMETERS: ",d",
    Unit.PERPLEXITY: ".2f",
    Unit.ACCURACY: ".2%",
    Unit.LOSS: ".3f",
    Unit.MILLISECONDS: ".1f",
}
"""How a model card writes numbers of a unit."""


def classifier_measures(what: str) -> tuple[Measure, ...]:
    """Measures of a classifier of ``what`` (images, texts)."""

    def held_out(metrics: Metrics) -> str:
        return f"{metrics.get('num_examples', 0):,} held-out {what}"

    return (
        PARAMETERS,
        FILE_SIZE,
        Measure(
            key="accuracy",
            label="Accuracy",
            unit=Unit.ACCURACY,
            detail=held_out,
            card=lambda metrics: f"accuracy ({held_out(metrics)})",
        ),
        Measure(key="loss", label="Loss", unit=Unit.LOSS, detail=lambda metrics: f"nats, {held_out(metrics)}"),
        FORWARD_PASS,
    )
