"""Latencies of runs from their records and from ``loraprune bench``, and which of them are comparable."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from loraprune.options.near import did_you_mean
from loraprune.record import numbers
from loraprune.record.run_record import ModelMeasures
from loraprune.report.comparison.qualities import Compared, ComparedModels
from loraprune.report.comparison.result import LATENCY, Cost
from loraprune.report.comparison.runs import Run, last_part

if TYPE_CHECKING:
    from loraprune.measure.benchmark.result import BenchFigure, BenchResult

RECORDED = "recorded"
"""Name of the latencies of the runs' own records."""

STEADY = 1.1
"""Ratio of the largest to the smallest latency of one dense model, up to which a machine counts as equally fast."""


@dataclass(frozen=True, kw_only=True)
class Speed:
    """A latency of one model.

    Attributes:
        milliseconds: measured latency; comparable if ``work`` and ``machine`` are the same.
        relative: factor of the latency of the model ``reference``, timed alternately; None if unknown.
        reference: a dense model, or the starting model of a run.
        work: timed work; empty for a benchmark, which times one piece of work on one machine.
        machine: description of the machine; the platform comes last.
    """

    milliseconds: float
    relative: float | None = None
    reference: str = ""
    work: str = ""
    machine: tuple[str, ...] = ()


Speeds = dict[Compared, Speed]


@dataclass(frozen=True, kw_only=True)
class SpeedSource:
    """Latencies of one kind of work.

    Attributes:
        name: name for ``--latency``.
        label: name for the reader.
        detail: conditions of the measurement.
        speeds: latencies of runs and of starting models.
        span: minimum and maximum milliseconds of one starting model that several runs measured.
    """

    name: str
    label: str
    detail: str
    speeds: Speeds
    span: tuple[float, float] = (1.0, 1.0)


def recorded_speeds(runs: Sequence[Run], references: Sequence[str] = ()) -> SpeedSource:
    """Return the latencies in the records: a forward pass of the result, timed alternately with the starting model.

    Args:
        runs: runs of one group.
        references: their starting models. Each counts with the median over these runs.
    """
    speeds: Speeds = {}
    before: dict[str, list[Speed]] = {}
    for run in runs:  # a plain model has no record, and no latency
        milliseconds, began = _positive(run.after.latency_ms), _positive(run.before.latency_ms)
        if milliseconds is None:
            continue
        reference, relative = _relative(run)
        speed = Speed(
            milliseconds=milliseconds,
            relative=relative,
            reference=reference,
            work=_work(run.after),
            machine=run.machine,
        )
        speeds[Compared(run.name)] = speed
        if began is not None:
            own = replace(speed, milliseconds=began, relative=1.0, reference=last_part(run.base_name))
            before.setdefault(own.reference, []).append(own)
    details = {speed.work for speed in speeds.values()}
    spans = [(1.0, 1.0)]
    for name in (name for name in references if name in before):
        times = [speed.milliseconds for speed in before[name]]
        spans.append((min(times), max(times)))
        speeds[Compared(name, began=True)] = replace(before[name][0], milliseconds=statistics.median(times))
    return SpeedSource(
        name=RECORDED,
        label="Forward pass",
        detail=f"{details.pop()}, median" if len(details) == 1 else "median",
        speeds=speeds,
        span=max(spans, key=lambda span: span[1] / span[0]),
    )


def check_latency(asked: str | None, sources: Sequence[SpeedSource]) -> None:
    """Check that there are latencies of the name that a user asks for.

    Raises:
        ValueError: there are none.
    """
    names = list(dict.fromkeys(source.name for source in sources if source.speeds))
    if asked is None or asked in names:
        return
    hint = did_you_mean(asked, names)
    known = f"there are {', '.join(names)}" if names else "nothing was timed; name files of `loraprune bench` (--bench)"
    raise ValueError(f"No latency is called {asked!r}: {known}.{hint}")


def _relative(run: Run) -> tuple[str, float | None]:
    """Time of the result as a share of the dense model's, multiplied over all runs between them."""
    after, before = _positive(run.after.latency_ms), _positive(run.before.latency_ms)
    own = after / before if after and before else None
    if run.base is None:
        return last_part(run.base_name), own
    reference, earlier = _relative(run.base)
    return reference, None if own is None or earlier is None else own * earlier


def _work(measures: ModelMeasures) -> str:
    tokens = measures.latency_tokens
    return measures.latency_input or "" if tokens is None else f"1 × {tokens} tokens"


def _positive(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) and value > 0 else None


def benched_speeds(
    files: Sequence[str | Path], results: Sequence[BenchResult], known: ComparedModels
) -> list[SpeedSource]:
    """Return the latencies of benchmarks. Each table of each file is a source of its own.

    Args:
        files: files of the benchmarks.
        results: contents of the files.
        known: runs and starting models.

    Raises:
        ValueError: a benchmark timed training steps.
    """
    sources = []
    for file, result in zip(files, results, strict=True):
        if result.profile != "inference":
            raise ValueError(f"{file} is a benchmark of training steps. Name one of inference: loraprune bench MODEL…")
        subjects = {
            model.label: subject
            for model in result.models
            if model.adapter != "unmerged"
            and (subject := known.of(model.name, model.fingerprint, Path(file))) is not None
        }
        sources += [_table(file, result, figures, subjects) for figures in result.tables()]
    return sources


def _table(
    file: str | Path, result: BenchResult, figures: Sequence[BenchFigure], subjects: Mapping[str, Compared]
) -> SpeedSource:
    first = figures[0]
    batch = first.settings.get("batch_size")
    decoding = first.measure == "decoding"
    known = [(subjects[figure.contender], figure) for figure in figures if figure.contender in subjects]
    of_dense = {subject.name: figure for subject, figure in known if subject.began}
    # It is unknown here which of several dense models a run started from.
    reference, dense = next(iter(of_dense.items())) if len(of_dense) == 1 else ("", None)
    speeds = {
        subject: Speed(
            milliseconds=figure.times.median * 1000,
            relative=None if dense is None else figure.over(dense, in_turns=bool(result.settings.get("turns", True))),
            reference=reference,
        )
        for subject, figure in known
    }
    tokens = first.settings.get("tokens") or (first.tokens if not decoding else None)
    prompt = first.settings.get("prompt_tokens")
    work = f"batch of {batch}" + (f", {tokens:,} tokens" if isinstance(tokens, int) else "")
    work += f", after {prompt:,} tokens" if isinstance(prompt, int) else ""
    return SpeedSource(
        name=f"{first.measure}@{batch}" if batch not in (None, 1) else first.measure,
        label="Decoding, per token" if decoding else "Prefill" if first.measure == "prefill" else "Forward pass",
        detail=f"{work}, median, {Path(file).name}",
        speeds=speeds,
    )


# Choice of latencies for a group of runs: milliseconds if comparable, else shares of the dense model's latency.


def note_on(text: str, names: Sequence[str]) -> list[str]:
    """Return a note on some runs; empty if there are no such runs."""
    return [text.format(names=", ".join(names))] if names else []


def latency_of(
    runs: Sequence[Run], references: Sequence[str], benched: Sequence[SpeedSource], asked: str | None
) -> tuple[Cost | None, Speeds, list[str]]:
    """Choose the source that covers most runs. Ties favor a benchmark, then a source that has the starting models.

    Args:
        runs: runs of one group.
        references: their starting models.
        benched: latencies of benchmarks.
        asked: name of the requested source; None accepts any.

    Returns:
        The cost to show (None if nothing is known), the latencies, and remarks for the reader.
    """
    sources = [each for each in (*benched, recorded_speeds(runs, references)) if asked in (None, each.name)]
    models = [*map(Compared, (run.name for run in runs)), *(Compared(name, began=True) for name in references)]

    def rank(source: SpeedSource) -> tuple[int, bool, int]:
        of_runs = sum(Compared(run.name) in source.speeds for run in runs)
        return of_runs, source.name != RECORDED, sum(model in source.speeds for model in models)

    if not sources:
        return None, {}, []
    source = max(sources, key=rank)
    speeds = {model: source.speeds[model] for model in models if model in source.speeds}
    timed = {run.name: speeds[Compared(run.name)] for run in runs if Compared(run.name) in speeds}
    if not timed:
        return None, {}, []
    notes = note_on("The latency of {names} is unknown.", [run.name for run in runs if run.name not in timed])
    shares = _relative_only(speeds, runs, references)
    alike = len({(speed.work, speed.machine) for speed in timed.values()}) == 1
    cost = Cost(name=LATENCY, label=source.label, detail=source.detail)
    if alike and source.span[1] <= STEADY * source.span[0]:
        known = {model: shares.get(model, replace(speed, relative=None)) for model, speed in speeds.items()}
        return cost, known, notes
    notes += _why_shares(source.span, timed, alike=alike)
    unknown = [name for name in timed if Compared(name) not in shares]
    notes += note_on("For {names}, the dense model's latency on the same machine is unknown.", unknown)
    if len(unknown) == len(timed):
        return None, shares, notes
    detail, why = "share of the dense model's, timed alternately", "" if alike else "not measured in the same way"
    return replace(cost, detail=detail, relative=True, why_no_front=why), shares, notes


def _why_shares(span: tuple[float, float], timed: Mapping[str, Speed], *, alike: bool) -> list[str]:
    if alike:
        return [
            f"The dense model took between {numbers.milliseconds(span[0])} and {numbers.milliseconds(span[1])} in "
            "these runs, so the speed of the machine varied. Latencies are shown as shares of the dense model's, timed "
            "alternately with each run."
        ]
    machines = machines_in_words({name: speed.machine for name, speed in timed.items()})
    places = ", ".join(f"{name} ({speed.work}; {machines[name]})" for name, speed in timed.items())
    return [f"Latencies were not measured in the same way, so only shares of each dense model's are shown: {places}."]


def _relative_only(speeds: Speeds, runs: Sequence[Run], references: Sequence[str]) -> Speeds:
    """Latencies known as shares of a starting model's latency."""
    dense = {Compared(run.name): {last_part(run.dense_name), *references} for run in runs}
    return {
        model: speed
        for model, speed in speeds.items()
        if speed.relative is not None and (model.began or speed.reference in dense[model])
    }


def machines_in_words(machines: Mapping[str, tuple[str, ...]]) -> dict[str, str]:
    """Describe machines, with the platform only if nothing else distinguishes them."""
    short = {name: ", ".join(parts[:-1]) for name, parts in machines.items()}
    if len(set(short.values())) == len(set(machines.values())):
        return short
    return {name: ", ".join(parts) for name, parts in machines.items()}
