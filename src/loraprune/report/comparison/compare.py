"""From figures of runs to groups in which they compare, with the Pareto fronts marked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from loraprune.record import numbers
from loraprune.report.comparison.costs import Costs, costs_of
from loraprune.report.comparison.pareto import pareto_front
from loraprune.report.comparison.qualities import Figure
from loraprune.report.comparison.quality_choice import REMEDY
from loraprune.report.comparison.result import SECONDS, ComparedModel, RunGroup
from loraprune.report.comparison.results import Subject
from loraprune.report.comparison.runs import Run, last_part
from loraprune.report.comparison.speeds import SpeedSource


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Runs with their figures of quality.

    Attributes:
        runs: that are compared, in the order given.
        figures: by run and name of the measure.
        model_figures: of the dense models, by the last part of their names.
        model_names: that dense models are shown under, likewise.
    """

    runs: tuple[Run, ...]
    figures: Mapping[str, Mapping[str, Figure]]
    model_figures: Mapping[str, Mapping[str, Figure]]
    model_names: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Reference:
    """A model that runs of a group began with.

    Attributes:
        name: the last part of its own; ``shown``: that it is shown under.
        what: it is.
        quality: its figure.
        measures: its size, as a record or an entry has it.
    """

    name: str
    shown: str
    what: str
    quality: float
    measures: Mapping[str, Any]


def grouped(
    measured: Measured, name: str, sources: Sequence[SpeedSource]
) -> tuple[tuple[RunGroup, ...], tuple[str, ...]]:
    """Part the runs that have a measure into groups that compare, and say why there are several.

    Args:
        measured: the runs.
        name: of the measure.
        sources: of latencies; each group takes the one that knows most of its runs, of equals a benchmark.
    """
    members: list[list[Run]] = []
    for run in measured.runs:
        figure = measured.figures[run.name].get(name)
        if figure is None:
            continue
        home = next((group for group in members if figure.compares_with(measured.figures[group[0].name][name])), None)
        if home is None:
            members.append([run])
        else:
            home.append(run)
    numbered = {run.name: position for position, run in enumerate(measured.runs, start=1)}
    groups = tuple(_group(group, measured, name, sources, numbered) for group in members)
    return groups, _why_apart(members, measured, name)


def _why_apart(members: Sequence[Sequence[Run]], measured: Measured, name: str) -> tuple[str, ...]:
    """A note of each group after the first: in what its figures differ from the first one's."""
    if len(members) < 2:
        return ()
    first = measured.figures[members[0][0].name][name]
    notes = [f"Not all figures compare, so that there are {len(members)} groups, each with fronts of its own. {REMEDY}"]
    for group in members[1:]:
        other = measured.figures[group[0].name][name]
        named = ", ".join(run.name for run in group)
        notes.append(f"{named} and {members[0][0].name}: {_difference(other, first)}.")
    return tuple(notes)


def _difference(one: Figure, other: Figure) -> str:
    if one.condition != other.condition:
        details = one.quality.detail, other.quality.detail
        if details[0] != details[1]:
            return f"measured on {details[0] or 'unknown data'}, and on {details[1] or 'unknown data'}"
        return "measured on other data, or with other settings"
    if one.reference != other.reference:
        return (
            f"one began with {one.reference} and the other with {other.reference}, and nothing tells whether both were "
            "measured on the same data"
        )
    return (
        f"their records give {one.reference} {numbers.significant(one.anchor)} and "
        f"{numbers.significant(other.anchor)}, so that data, seed or precision of the measurement were not the same"
    )


def _group(
    runs: Sequence[Run], measured: Measured, name: str, sources: Sequence[SpeedSource], numbered: Mapping[str, int]
) -> RunGroup:
    figures = {run.name: measured.figures[run.name][name] for run in runs}
    first = figures[runs[0].name]
    references = _references(runs, first, measured, name)
    costs = costs_of(runs, {reference.name: reference.measures for reference in references}, figures, sources)
    models = [_reference_model(reference, costs) for reference in references]
    models += [_run_model(run, figures[run.name], costs, numbered[run.name]) for run in runs]
    notes = [*costs.notes, *_quality_notes(first, figures, references)]
    return RunGroup(
        base=", ".join(dict.fromkeys(reference.shown for reference in references)),
        quality=first.quality,
        costs=costs.shown,
        models=_with_fronts(models, costs, higher_is_better=first.quality.higher_is_better),
        notes=tuple(notes),
    )


def _references(runs: Sequence[Run], first: Figure, measured: Measured, name: str) -> list[Reference]:
    """The models that the group began with: the one that all records measured, or those that were evaluated."""
    if first.anchor is not None:
        origin = next(run for run in runs[0].chain() if last_part(run.base_name) == first.reference)
        shown = measured.model_names.get(first.reference, first.reference)
        return [
            Reference(
                name=first.reference,
                shown=shown,
                what=origin.base_words,
                quality=first.anchor,
                measures=origin.before,
            )
        ]
    found = []
    for model, figures in measured.model_figures.items():
        if name in figures and figures[name].compares_with(first):
            parts = (part for run in runs for part in run.chain())
            began = next((part.before for part in parts if last_part(part.base_name) == model), {})
            found.append(
                Reference(
                    name=model,
                    shown=measured.model_names[model],
                    what="dense",
                    quality=figures[name].value,
                    measures={"parameters": figures[name].parameters, **began},
                )
            )
    return found


def _reference_model(reference: Reference, costs: Costs) -> ComparedModel:
    return ComparedModel(
        number=None,
        name=reference.shown,
        folder=reference.name,
        what=reference.what,
        quality=reference.quality,
        **costs.of(Subject(reference.name, began=True)),
    )


def _run_model(run: Run, figure: Figure, costs: Costs, number: int) -> ComparedModel:
    return ComparedModel(
        number=number,
        name=run.name,
        folder=str(run.folder),
        what=run.what,
        quality=figure.value,
        **costs.of(Subject(run.name)),
    )


def _with_fronts(models: Sequence[ComparedModel], costs: Costs, *, higher_is_better: bool) -> tuple[ComparedModel, ...]:
    """Mark what lies on a front. Nothing was trained to make a dense model: it stays out of the one of time."""
    best: list[list[str]] = [[] for _ in models]
    for cost in costs.shown:
        ranked = [index for index, model in enumerate(models) if model.number is not None or cost.name != SECONDS]
        known = [index for index in ranked if cost.name in models[index].costs]
        if cost.why_no_front or len(known) < 2:
            continue
        front = pareto_front(
            [models[index].costs[cost.name] for index in known],
            [models[index].quality for index in known],
            higher_is_better=higher_is_better,
        )
        for index, is_best in zip(known, front, strict=True):
            if is_best:
                best[index].append(cost.name)
    return tuple(replace(model, best_for=tuple(names)) for model, names in zip(models, best, strict=True))


def _quality_notes(first: Figure, figures: Mapping[str, Figure], references: Sequence[Reference]) -> list[str]:
    notes = []
    dtypes = {figure.dtype for figure in figures.values() if figure.dtype}
    if len(dtypes) > 1:
        listed = ", ".join(f"{run} {figure.dtype}" for run, figure in figures.items())
        notes.append(f"Measured in several dtypes, so that small differences mean nothing: {listed}.")
    if first.anchor is None and not references:
        notes.append(f"The dense model was not measured in this way ({first.quality.name}), and is not shown.")
    return notes
