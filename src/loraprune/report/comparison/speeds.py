"""Latencies that runs have: those of their own records, and those of ``loraprune bench``."""

from __future__ import annotations

import difflib
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loraprune.report.comparison.results import Subject, Subjects
from loraprune.report.comparison.runs import Run, last_part

if TYPE_CHECKING:
    from loraprune.measure.benchmark.result import BenchResult, Figure

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
    speeds: Mapping[Subject, Speed]
    before: Mapping[str, Speed] = field(default_factory=dict)

    def of_model(self, name: str, runs: Sequence[str]) -> Speed | None:
        """The latency of a model that some runs began with: the median of what these runs measured."""
        known = self.speeds.get(Subject(name, began=True))
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
        milliseconds = _finite(run.after.get("latency_ms"))
        if milliseconds is None:
            continue
        reference, relative = _relative(run)
        work, machine = _work(run.after), run.machine
        conditions = json.dumps((work, machine))
        speeds[Subject(run.name)] = Speed(
            milliseconds=milliseconds,
            relative=relative,
            reference=reference,
            conditions=conditions,
            work=work,
            machine=machine,
        )
        began = _finite(run.before.get("latency_ms"))
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
    after, before = _finite(run.after.get("latency_ms")), _finite(run.before.get("latency_ms"))
    own = after / before if after and before else None
    if run.base is None:
        return last_part(run.base_name), own
    reference, earlier = _relative(run.base)
    return reference, None if own is None or earlier is None else own * earlier


def _work(measures: Mapping[str, Any]) -> str:
    tokens = measures.get("latency_tokens")
    return f"1 × {tokens} tokens" if tokens is not None else str(measures.get("latency_input") or "")


def _finite(value: Any) -> float | None:
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) and value > 0 else None


def benched_speeds(files: Sequence[str | Path], results: Sequence[BenchResult], known: Subjects) -> list[SpeedSource]:
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
    file: str | Path, result: BenchResult, figures: Sequence[Figure], subjects: Mapping[str, Subject]
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
