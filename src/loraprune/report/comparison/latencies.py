"""Which latencies a group of runs is compared by: milliseconds where they compare, else shares of the dense model's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from loraprune.record import numbers
from loraprune.report.comparison.result import LATENCY, Cost
from loraprune.report.comparison.results import Subject
from loraprune.report.comparison.runs import Run, last_part
from loraprune.report.comparison.speeds import RECORDED, Speed, SpeedSource

STEADY = 1.1
"""Largest over smallest latency of one dense model, up to which a machine was equally fast during several runs."""

Speeds = dict[Subject, Speed]


def told_of(text: str, names: Sequence[str]) -> list[str]:
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
    timed = {run.name: speeds[Subject(run.name)] for run in runs if Subject(run.name) in speeds}
    if not timed:
        return None, {}, []
    notes = told_of("No latency is known of {names}.", [run.name for run in runs if run.name not in timed])
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
        notes += told_of(text, places)
    speeds = _relative_only(speeds, runs, references)
    unknown = [name for name in timed if Subject(name) not in speeds]
    notes += told_of("Of {names}, no latency of the dense model on the same machine is known.", unknown)
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
    dense = {Subject(run.name): {last_part(run.dense_name), *references} for run in runs}
    return {
        subject: speed
        for subject, speed in speeds.items()
        if speed.relative is not None and (subject.began or speed.reference in dense[subject])
    }


def _speeds_of(source: SpeedSource, runs: Sequence[Run], references: Sequence[str]) -> Speeds:
    names = [run.name for run in runs]
    found = {subject: source.speeds[subject] for subject in map(Subject, names) if subject in source.speeds}
    if found:
        for reference in references:
            speed = source.of_model(reference, names)
            if speed is not None:
                found[Subject(reference, began=True)] = speed
    return found


def machines_in_words(machines: Mapping[str, tuple[str, ...]]) -> dict[str, str]:
    """Machines in words, with the platform only where nothing else tells them apart."""
    short = {name: ", ".join(parts[:-1]) for name, parts in machines.items()}
    if len(set(short.values())) == len(set(machines.values())):
        return short
    return {name: ", ".join(parts) for name, parts in machines.items()}
