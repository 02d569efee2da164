"""Costs that quality is compared against: parameters, latency and training time of comparable runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from loraprune.pruning.phase_timer import BASE, DENSE, LOADING, MERGING, RESULT, WRITING
from loraprune.record import numbers
from loraprune.record.run_record import ModelMeasures
from loraprune.report.comparison.qualities import Compared, QualityFigure, Reference
from loraprune.report.comparison.result import LATENCY, PARAMETERS, SECONDS, Cost
from loraprune.report.comparison.runs import Run
from loraprune.report.comparison.speeds import Speed, SpeedSource, latency_of, machines_in_words, note_on

SPARSE_SHARE = 0.99
"""A model counts as sparse only if its share of nonzero parameters is below this; a few exact zeros are normal."""

NOT_TRAINING = (LOADING, DENSE, BASE, MERGING, RESULT, WRITING)


@dataclass(frozen=True, kw_only=True)
class Costs:
    """Costs of the models of one group.

    Attributes:
        shown: parameters, and the other costs for which any model has a figure.
        figures: figures of each known model, by name of the cost.
        sizes: size of each model.
        speeds: latencies.
        notes: remarks for the reader.
    """

    shown: tuple[Cost, ...]
    figures: Mapping[str, Mapping[Compared, float | None]]
    sizes: Mapping[Compared, ModelMeasures]
    speeds: Mapping[Compared, Speed]
    notes: tuple[str, ...]

    def of(self, subject: Compared) -> dict[str, Any]:
        """Fields of a compared model."""
        size, speed = self.sizes[subject], self.speeds.get(subject)
        figures = {name: known.get(subject) for name, known in self.figures.items()}
        return {
            "costs": {name: float(value) for name, value in figures.items() if value is not None},
            "sparse": _is_sparse(size),
            "stored_parameters": size.parameters,
            "bytes": size.bytes,
            "latency_ms": None if speed is None else speed.milliseconds,
            "relative_latency": None if speed is None else speed.relative,
        }


def costs_of(
    runs: Sequence[Run],
    references: Sequence[Reference],
    figures: Mapping[str, QualityFigure],
    benched: Sequence[SpeedSource],
    latency: str | None,
) -> Costs:
    """Collect the costs.

    Args:
        runs: runs of one group.
        references: their starting models.
        figures: quality figures, which may include the parameters of a model without a record.
        benched: latencies of benchmarks.
        latency: name of the latencies to use.
    """
    sizes = {
        Compared(run.name): ModelMeasures(parameters=figures[run.name].parameters) if run.record is None else run.after
        for run in runs
    }
    sparse = [run.name for run in runs if _is_sparse(sizes[Compared(run.name)])]
    notes = note_on(
        "Parameters of {names}: only nonzero ones. File size and plain inference are those of all parameters.",
        sparse,
    )
    sizes |= {Compared(reference.name, began=True): reference.measures for reference in references}
    timed, speeds, notes_of_latency = latency_of(runs, [each.name for each in references], benched, latency)
    time, seconds, notes_of_time = _training_time(runs)
    detail = "nonzero ones only for sparse models" if sparse else ""
    counted = {model: size.nonzero if _is_sparse(size) else size.parameters for model, size in sizes.items()}
    shares = timed is not None and timed.relative
    latencies = {model: speed.relative if shares else speed.milliseconds for model, speed in speeds.items()}
    return Costs(
        shown=tuple(filter(None, (Cost(name=PARAMETERS, label="Parameters", detail=detail), timed, time))),
        figures={PARAMETERS: counted, LATENCY: latencies if timed else {}, SECONDS: seconds},
        sizes=sizes,
        speeds=speeds,
        notes=(*notes, *notes_of_latency, *notes_of_time),
    )


def _is_sparse(size: ModelMeasures) -> bool:
    return bool(size.nonzero and size.parameters and size.nonzero < SPARSE_SHARE * size.parameters)


def _training_time(runs: Sequence[Run]) -> tuple[Cost | None, dict[Compared, float], list[str]]:
    """Seconds of each run and its predecessors: training time if all records have it, else total time."""
    recorded = [run for run in runs if run.record is not None]
    only_training = bool(recorded) and all(part.metrics.phases for run in recorded for part in run.chain())
    seconds: dict[Compared, float] = {}
    partial = []
    for run in recorded:
        parts = [_seconds(part, only_training=only_training) for part in run.chain()]
        known = [part for part in parts if part is not None]
        if not known or len(known) < len(parts):
            continue
        seconds[Compared(run.name)] = sum(known)
        if not list(run.chain())[-1].began_dense:
            partial.append(run.name)
    if not seconds:
        return None, {}, []
    notes = note_on(
        "Time of {names}: without earlier runs, because the record of the base is missing. Name that folder, too.",
        partial,
    )
    machines = {run.name: run.machine for run in recorded if Compared(run.name) in seconds}
    why = ""
    if len(set(machines.values())) > 1:
        why = "taken on different machines"
        listed = [f"{name} ({machine})" for name, machine in machines_in_words(machines).items()]
        notes += note_on("Times come from different machines, so they have no front: {names}.", listed)
    elif partial:
        why = "only a part is known for some runs"
    detail = "tuning, cuts and repairs" if only_training else "the whole run, with its measurements"
    return Cost(name=SECONDS, label="Training time", detail=detail, why_no_front=why), seconds, notes


def _seconds(run: Run, *, only_training: bool) -> float | None:
    if only_training:
        return sum(seconds for phase, seconds in run.metrics.phases.items() if phase not in NOT_TRAINING)
    return run.metrics.seconds if numbers.is_number(run.metrics.seconds) else None
