"""Latencies of runs: from their records and from ``loraprune bench``, and which of them compare."""

from __future__ import annotations

import difflib
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from loraprune.record import numbers
from loraprune.record.run_record import ModelMeasures
from loraprune.report.comparison.qualities import Compared, ComparedModels
from loraprune.report.comparison.result import LATENCY, Cost
from loraprune.report.comparison.runs import Run, last_part

if TYPE_CHECKING:
    from loraprune.measure.benchmark.result import BenchFigure, BenchResult

RECORDED = "recorded"
"""Name of the latencies of the runs' own records."""


@dataclass(frozen=True, kw_only=True)
class Speed:
    """A latency of one model.

    Attributes:
        milliseconds: as measured.
        relative: to the model named ``reference``, timed in turns with it; None where that is not known.
        reference: a dense model, or the one that a run began with.
        conditions: what has to be the same for milliseconds to compare: work and machine.
        work: that was timed.
        machine: that it was timed on, in words; the platform comes last.
    """

    milliseconds: float
    relative: float | None = None
    reference: str = ""
    conditions: str = ""
    work: str = ""
    machine: tuple[str, ...] = ()

    def shown(self, *, relative: bool) -> float | None:
        """The figure that is compared."""
        return self.relative if relative else self.milliseconds


@dataclass(frozen=True, kw_only=True)
class SpeedSource:
    """Latencies of one kind of work.

    Attributes:
        name: what ``--latency`` calls it.
        label: what the reader sees.
        detail: how they were measured.
        speeds: of runs, and of models that runs began with.
        before: of recorded latencies, those of the models that runs began with, by run: each run timed it anew.
    """

    name: str
    label: str
    detail: str
    speeds: Mapping[Compared, Speed]
    before: Mapping[str, Speed] = field(default_factory=dict)

    def of_model(self, name: str, runs: Sequence[str]) -> Speed | None:
        """The latency of a model that some runs began with: the median of what these runs measured."""
        known = self.speeds.get(Compared(name, began=True))
        if known is not None:
            return known
        found = [speed for run, speed in self.before.items() if run in runs and speed.reference == name]
        if not found:
            return None
        median = statistics.median(speed.milliseconds for speed in found)
        return Speed(milliseconds=median, relative=1.0, reference=name, conditions=found[0].conditions)

    def span(self, names: Sequence[str], runs: Sequence[str]) -> tuple[float, float]:
        """The least and the greatest milliseconds that runs measured of one model that they began with."""
        spans = [(1.0, 1.0)]
        for name in names:
            found = [
                speed.milliseconds for run, speed in self.before.items() if run in runs and speed.reference == name
            ]
            spans += [(min(found), max(found))] if found else []
        return max(spans, key=lambda span: span[1] / span[0])


def recorded_speeds(runs: Sequence[Run]) -> SpeedSource:
    """What the records say: a forward pass of the result in turns with one of the model before the run."""
    speeds, before = {}, {}
    for run in runs:  # a plain model has no record, and no latency
        milliseconds = _finite(run.after.latency_ms)
        if milliseconds is None:
            continue
        reference, relative = _relative(run)
        work, machine = _work(run.after), run.machine
        conditions = json.dumps((work, machine))
        speeds[Compared(run.name)] = Speed(
            milliseconds=milliseconds,
            relative=relative,
            reference=reference,
            conditions=conditions,
            work=work,
            machine=machine,
        )
        began = _finite(run.before.latency_ms)
        if began is not None:
            before[run.name] = Speed(
                milliseconds=began, relative=1.0, reference=last_part(run.base_name), conditions=conditions
            )
    details = {speed.work for speed in speeds.values()}
    detail = f"{details.pop()}, median" if len(details) == 1 else "median"
    return SpeedSource(name=RECORDED, label="Forward pass", detail=detail, speeds=speeds, before=before)


def named_source(asked: str, sources: Sequence[SpeedSource]) -> SpeedSource:
    """The latencies that a user means.

    Raises:
        ValueError: there are none of that name.
    """
    names = list(dict.fromkeys(source.name for source in sources if source.speeds))
    for source in sources:
        if source.name == asked and source.speeds:
            return source
    near = difflib.get_close_matches(asked, names, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    known = f"there are {', '.join(names)}" if names else "nothing was timed; name files of `loraprune bench` (--bench)"
    raise ValueError(f"No latency is called {asked!r}: {known}.{hint}")


def _relative(run: Run) -> tuple[str, float | None]:
    """Time of the result as a share of that of the dense model; through all runs on the way from there."""
    after, before = _finite(run.after.latency_ms), _finite(run.before.latency_ms)
    own = after / before if after and before else None
    if run.base is None:
        return last_part(run.base_name), own
    reference, earlier = _relative(run.base)
    return reference, None if own is None or earlier is None else own * earlier


def _work(measures: ModelMeasures) -> str:
    tokens = measures.latency_tokens
    return measures.latency_input or "" if tokens is None else f"1 × {tokens} tokens"


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) and value > 0 else None


def benched_speeds(
    files: Sequence[str | Path], results: Sequence[BenchResult], known: ComparedModels
) -> list[SpeedSource]:
    """What benchmarks say; each table of each file is a source of its own.

    Args:
        files: that the benchmarks were read from.
        results: of the files.
        known: runs, and models that runs began with.

    Raises:
        ValueError: a benchmark is one of training steps.
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
    # Which of several dense models a run began with is not known here.
    reference, dense = next(iter(of_dense.items())) if len(of_dense) == 1 else ("", None)
    speeds = {
        subject: Speed(
            milliseconds=figure.times.median * 1000,
            relative=None if dense is None else figure.over(dense, in_turns=bool(result.settings.get("turns", True))),
            reference=reference,
            conditions=json.dumps((str(file), first.measure, batch)),
        )
        for subject, figure in known
    }
    tokens = first.settings.get("tokens") or (first.tokens if not decoding else None)
    prompt = first.settings.get("prompt_tokens")
    work = f"batch of {batch}" + (f", {tokens:,} tokens" if isinstance(tokens, int) else "")
    work += f", after {prompt:,} tokens" if isinstance(prompt, int) else ""
    return SpeedSource(
        name=f"{first.measure}@{batch}" if batch not in (None, 1) else first.measure,
        label="Decoding, a token" if decoding else "Prefill" if first.measure == "prefill" else "Forward pass",
        detail=f"{work}, median, {Path(file).name}",
        speeds=speeds,
    )


# Which latencies a group of runs is compared by: milliseconds where they compare, else shares of the dense model's.

STEADY = 1.1
"""Largest over smallest latency of one dense model, up to which a machine was equally fast during several runs."""

Speeds = dict[Compared, Speed]


def note_on(text: str, names: Sequence[str]) -> list[str]:
    """A note on some runs; none where there are none."""
    return [text.format(names=", ".join(names))] if names else []


def latency_of(
    runs: Sequence[Run], references: Sequence[str], sources: Sequence[SpeedSource]
) -> tuple[Cost | None, Speeds, list[str]]:
    """Take the source that knows most of the runs; of equals a benchmark, then one that knows the models before them.

    Args:
        runs: of one group.
        references: models that they began with.
        sources: of latencies.

    Returns:
        What is shown (None where nothing is known), the latencies, and what the reader has to know.
    """
    if not sources:
        return None, {}, []
    known = [_speeds_of(source, runs, references) for source in sources]

    def rank(index: int) -> tuple[int, bool, int]:
        of_runs = sum(not subject.began for subject in known[index])
        return of_runs, sources[index].name != RECORDED, len(known[index])

    best = max(range(len(sources)), key=rank)
    source, speeds = sources[best], known[best]
    timed = {run.name: speeds[Compared(run.name)] for run in runs if Compared(run.name) in speeds}
    if not timed:
        return None, {}, []
    notes = note_on("No latency is known of {names}.", [run.name for run in runs if run.name not in timed])
    alike = len({speed.conditions for speed in timed.values()}) == 1
    least, most = source.span(references, list(timed)) if alike else (1.0, 1.0)
    if alike and most <= STEADY * least:
        shares = _relative_only(speeds, runs, references)
        speeds = {
            subject: speed if subject in shares else replace(speed, relative=None) for subject, speed in speeds.items()
        }
        return Cost(name=LATENCY, label=source.label, detail=source.detail), speeds, notes
    if alike:
        span = f"between {numbers.milliseconds(least)} and {numbers.milliseconds(most)}"
        notes.append(
            f"The dense model took {span} in these runs: the machine was not equally fast, so that shares of the "
            "latency that the dense model had in turns with each run are shown."
        )
    else:
        machines = machines_in_words({name: speed.machine for name, speed in timed.items()})
        places = [f"{name} ({speed.work}; {machines[name]})" for name, speed in timed.items()]
        text = "Latencies were not measured alike, so that only shares of each dense model's own are shown: {names}."
        notes += note_on(text, places)
    speeds = _relative_only(speeds, runs, references)
    unknown = [name for name in timed if Compared(name) not in speeds]
    notes += note_on("Of {names}, no latency of the dense model on the same machine is known.", unknown)
    cost = Cost(
        name=LATENCY,
        label=source.label,
        detail="share of the dense model's, timed in turns with it",
        relative=True,
        why_no_front="" if alike else "not measured alike",
    )
    return (None if len(unknown) == len(timed) else cost), speeds, notes


def _relative_only(speeds: Speeds, runs: Sequence[Run], references: Sequence[str]) -> Speeds:
    """Latencies that are known as shares of that of a model that the group began with."""
    dense = {Compared(run.name): {last_part(run.dense_name), *references} for run in runs}
    return {
        subject: speed
        for subject, speed in speeds.items()
        if speed.relative is not None and (subject.began or speed.reference in dense[subject])
    }


def _speeds_of(source: SpeedSource, runs: Sequence[Run], references: Sequence[str]) -> Speeds:
    names = [run.name for run in runs]
    found = {subject: source.speeds[subject] for subject in map(Compared, names) if subject in source.speeds}
    if found:
        for reference in references:
            speed = source.of_model(reference, names)
            if speed is not None:
                found[Compared(reference, began=True)] = speed
    return found


def machines_in_words(machines: Mapping[str, tuple[str, ...]]) -> dict[str, str]:
    """Machines in words, with the platform only where nothing else tells them apart."""
    short = {name: ", ".join(parts[:-1]) for name, parts in machines.items()}
    if len(set(short.values())) == len(set(machines.values())):
        return short
    return {name: ", ".join(parts) for name, parts in machines.items()}
