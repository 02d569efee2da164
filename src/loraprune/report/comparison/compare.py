"""Comparison of runs: their quality against parameters, latency and training time, from saved files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from loraprune.measure.evaluation.results import Entry
from loraprune.options.near import near_names
from loraprune.record import numbers
from loraprune.record.provenance import timestamp, versions
from loraprune.record.run_record import ModelMeasures
from loraprune.report.comparison.costs import Costs, costs_of
from loraprune.report.comparison.qualities import (
    Compared,
    ComparedModels,
    QualityFigure,
    Reference,
    entry_figures,
    read_entries,
    record_figures,
    same_figure,
)
from loraprune.report.comparison.result import SECONDS, ComparedModel, RunGroup, RunsComparison, pareto_front
from loraprune.report.comparison.runs import Run, last_part, read_runs
from loraprune.report.comparison.speeds import SpeedSource, benched_speeds, check_latency, recorded_speeds

if TYPE_CHECKING:
    from loraprune.measure.benchmark.result import BenchResult


def compare_runs(
    runs: Sequence[str | Path],
    *,
    evaluation: Sequence[str | Path] = (),
    bench: Sequence[str | Path] = (),
    quality: str | None = None,
    latency: str | None = None,
    names: Sequence[str] | None = None,
    command: str = "",
) -> RunsComparison:
    """Compare runs: quality against parameters, latency and training time, each with its Pareto front.

    Nothing is measured. The figures come from the records of the runs and the given files. Figures that are not
    comparable (different data, segment lengths or dense models) form separate groups.

    Args:
        runs: folders that ``prune``, ``oneshot`` or ``recover`` wrote, or folders of models in the given files.
        evaluation: files of ``loraprune eval``; ``evaluation.json`` in a run's folder is always read.
        bench: files of ``loraprune bench``.
        quality: name of the measure, such as ``"perplexity"`` or ``"wikitext2@2048"``; None is the measure that most
            runs have in common.
        latency: name of the timed work: ``"recorded"``, or ``"prefill"``, ``"decoding"``, ``"decoding@8"`` of a
            benchmark; None is the source that covers most runs, benchmarks first.
        names: names of the runs to show, in order; None uses the folder names.
        command: command line to show to the reader.

    Raises:
        ValueError: a folder is not a run, a file cannot be read, or the runs have no measure in common.
    """
    given = [runs] if isinstance(runs, (str, Path)) else list(runs)
    entries = read_entries(evaluation, [Path(folder) for folder in given])
    benches = _read_benches(bench)
    told_of = [entry.model for _, entry in entries] + [model.name for result in benches for model in result.models]
    found = read_runs(given, names, told_of)
    measured, subjects = _measured(found, entries)
    benched = benched_speeds(bench, benches, subjects)
    check_latency(latency, [*benched, recorded_speeds(measured.runs)])
    if quality is None:
        name = common_quality(measured.figures, measured.model_figures)
    else:
        name = named_quality(quality, measured.figures)
    groups, notes = _grouped(measured, name, benched, latency)
    return RunsComparison(
        groups=groups,
        other_qualities=tuple(other for other in quality_names(measured.figures) if other != name),
        notes=(*without(measured.figures, name), *subjects.notes(), *notes),
        created=timestamp(),
        versions={library: version for library, version in versions().items() if library in ("loraprune", "python")},
        command=command,
    )


def _read_benches(files: Sequence[str | Path]) -> list[BenchResult]:
    if not files:
        return []
    from loraprune.measure.benchmark.result import read_bench  # imports torch

    return [read_bench(file) for file in files]


def _measured(runs: Sequence[Run], entries: Sequence[tuple[Path, Entry]]) -> tuple[Measured, ComparedModels]:
    """Separate the dense models from the runs, and collect the figures of both from entries and records."""
    began_with = {last_part(run.dense_name): run.dense_name for run in runs if run.record is not None}
    plain = {run.folder.resolve().name: run for run in runs if run.record is None}
    dense = {name: run for name, run in plain.items() if name in began_with}
    compared = [run for run in runs if run.record is not None or run not in dense.values()]
    subjects = ComparedModels.among(
        {run.name: run.folder for run in compared},
        {full: dense[name].folder if name in dense else Path(full) for name, full in began_with.items()},
    )
    by_subject: dict[Compared | None, list[Entry]] = {}
    for file, entry in sorted(entries, key=lambda found: found[1].created):
        by_subject.setdefault(subjects.of(entry.model, entry.fingerprint, file), []).append(entry)
    figures = {run.name: entry_figures(by_subject.get(Compared(run.name), ())) for run in compared}
    measured = Measured(
        runs=tuple(compared),
        figures={run.name: figures[run.name] | record_figures(run) for run in compared},
        model_figures={name: entry_figures(by_subject.get(Compared(name, began=True), ())) for name in began_with},
        model_names={name: dense[name].name if name in dense else name for name in began_with},
    )
    return measured, subjects


# From the figures of runs to comparable groups with Pareto fronts.


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Runs with their quality figures.

    Attributes:
        runs: compared runs, in the given order.
        figures: figures by run and name of the measure.
        model_figures: figures of the dense models, by the last part of their names.
        model_names: names of the dense models to show, by the same key.
    """

    runs: tuple[Run, ...]
    figures: Mapping[str, Mapping[str, QualityFigure]]
    model_figures: Mapping[str, Mapping[str, QualityFigure]]
    model_names: Mapping[str, str]


def _grouped(
    measured: Measured, name: str, benched: Sequence[SpeedSource], latency: str | None
) -> tuple[tuple[RunGroup, ...], tuple[str, ...]]:
    """Split the runs that have a measure into comparable groups, and explain why there are several.

    Args:
        measured: the runs.
        name: name of the measure.
        benched: latencies of benchmarks.
        latency: name of the latencies; None uses the source that covers most runs, in each group.
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
    groups = tuple(_group(group, measured, name, benched, latency) for group in members)
    return groups, _why_apart(members, measured, name)


def _why_apart(members: Sequence[Sequence[Run]], measured: Measured, name: str) -> tuple[str, ...]:
    """For each group after the first, note how its figures differ from those of the first."""
    if len(members) < 2:
        return ()
    first = measured.figures[members[0][0].name][name]
    notes = [f"Not all figures are comparable, so there are {len(members)} groups with separate fronts. {REMEDY}"]
    for group in members[1:]:
        other = measured.figures[group[0].name][name]
        named = ", ".join(run.name for run in group)
        notes.append(f"{named} and {members[0][0].name}: {_difference(other, first)}.")
    return tuple(notes)


def _difference(one: QualityFigure, other: QualityFigure) -> str:
    details = one.quality.detail, other.quality.detail
    if details[0] != details[1]:
        return f"measured on {details[0] or 'unknown data'}, and on {details[1] or 'unknown data'}"
    began, others = one.reference, other.reference
    if (one.data and other.data) or began is None or others is None:
        return "measured on other data, or with other settings"
    if began.name != others.name:
        return (
            f"one started from {began.name} and the other from {others.name}, and it is unknown whether both were "
            "measured on the same data"
        )
    return (
        f"their records give {began.name} {numbers.significant(began.quality)} and "
        f"{numbers.significant(others.quality)}, so data, seed or precision of the measurement differed"
    )


def _group(
    runs: Sequence[Run], measured: Measured, name: str, benched: Sequence[SpeedSource], latency: str | None
) -> RunGroup:
    figures = {run.name: measured.figures[run.name][name] for run in runs}
    quality = figures[runs[0].name].quality
    references = _references(runs, figures, measured, name)
    costs = costs_of(runs, references, figures, benched, latency)
    models = [
        ComparedModel(
            number=None,
            name=measured.model_names.get(reference.name, reference.name),
            folder=reference.name,
            what=reference.what,
            quality=reference.quality,
            **costs.of(Compared(reference.name, began=True)),
        )
        for reference in references
    ]
    base = ", ".join(dict.fromkeys(model.name for model in models))
    models += [
        ComparedModel(
            number=measured.runs.index(run) + 1,
            name=run.name,
            folder=str(run.folder),
            what=run.what,
            quality=figures[run.name].value,
            **costs.of(Compared(run.name)),
        )
        for run in runs
    ]
    return RunGroup(
        base=base,
        quality=quality,
        costs=costs.shown,
        models=_with_fronts(models, costs, higher_is_better=quality.higher_is_better),
        notes=(*costs.notes, *_quality_notes(figures, references)),
    )


def _references(
    runs: Sequence[Run], figures: Mapping[str, QualityFigure], measured: Measured, name: str
) -> list[Reference]:
    """Starting models of the group: those in the records, or those that were evaluated."""
    found: dict[str, Reference] = {}
    for figure in figures.values():
        if figure.reference is not None:
            found.setdefault(figure.reference.name, figure.reference)
    if found:
        return list(found.values())
    sizes = {last_part(part.base_name): part.before for run in reversed(runs) for part in run.chain() if part.record}
    return [
        Reference(
            name=model,
            what="dense",
            quality=known[name].value,
            measures=sizes.get(model, ModelMeasures(parameters=known[name].parameters)),
        )
        for model, known in measured.model_figures.items()
        if name in known and known[name].compares_with(figures[runs[0].name])
    ]


def _with_fronts(models: Sequence[ComparedModel], costs: Costs, *, higher_is_better: bool) -> tuple[ComparedModel, ...]:
    """Mark the models on a front. Dense models are left out of the time front, because they needed no training."""
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


def _quality_notes(figures: Mapping[str, QualityFigure], references: Sequence[Reference]) -> list[str]:
    notes = []
    dtypes = {figure.dtype for figure in figures.values() if figure.dtype}
    if len(dtypes) > 1:
        listed = ", ".join(f"{run} {figure.dtype}" for run, figure in figures.items())
        notes.append(f"Measured in several dtypes, so small differences mean nothing: {listed}.")
    for model in references:
        found = [f.reference.quality for f in figures.values() if f.reference and f.reference.name == model.name]
        if not all(same_figure(quality, model.quality) for quality in found):
            span = f"between {numbers.significant(min(found))} and {numbers.significant(max(found))}"
            notes.append(f"On the same data, the records give {model.name} {span}: smaller differences mean nothing.")
    if not references:
        name = next(iter(figures.values())).quality.name
        notes.append(f"The dense model is not shown, because it was not measured in this way ({name}).")
    return notes


# Choice of the quality measure for a comparison.

Figures = Mapping[str, Mapping[str, QualityFigure]]
"""Figures by name of the run and of the measure."""

REMEDY = "Measure all of them with --eval, or run `loraprune eval` and name its file with --evaluation."


def quality_names(figures: Figures) -> list[str]:
    """Return all measures of all runs, in the order of their first appearance."""
    return list(dict.fromkeys(name for known in figures.values() for name in known))


def named_quality(asked: str, figures: Figures) -> str:
    """Return the measure that a user names: by its full name, or by a prefix that only one name has.

    Raises:
        ValueError: no run has such a measure, or several names have this prefix.
    """
    known = quality_names(figures)
    if asked in known:
        return asked
    # "wikitext2" means "wikitext2@2048"; "wikitext2:bits_per_byte" means the longer name with that ending
    start, _, key = asked.partition(":")
    alike = [name for name in known if name.startswith(start) and name.endswith(f":{key}" if key else "")]
    plain = [name for name in alike if ":" not in name] or alike
    if len(plain) == 1:
        return plain[0]
    near = plain or near_names(asked, known)
    hint = f" Did you mean {' or '.join(repr(name) for name in near)}?" if near else ""
    raise ValueError(f"No run has a measure {asked!r}.{hint} {_overview(figures)}")


def common_quality(figures: Figures, dense: Figures) -> str:
    """Return the measure that most runs share under the same conditions.

    Ties are broken in favor of a measure that the dense model also has, then of the first one.

    Args:
        figures: figures of the runs.
        dense: figures of the starting models, as far as these were evaluated.

    Raises:
        ValueError: several runs have no measure in common, or a single run has none.
    """
    names = quality_names(figures)
    shared = {name: [known[name] for known in figures.values() if name in known] for name in names}
    if not names:
        raise ValueError(f"The quality of {', '.join(figures)} is unknown. {REMEDY}")

    def rank(name: str) -> tuple[int, int, bool]:
        beside_dense = shared[name][0].reference is not None or any(name in known for known in dense.values())
        return _largest_group(shared[name]), len(shared[name]), beside_dense

    best = max(names, key=rank)
    if len(figures) > 1 and len(shared[best]) == 1:
        raise ValueError(f"The runs have no quality measure in common. {_overview(figures)} {REMEDY}")
    return best


def without(figures: Figures, name: str) -> list[str]:
    """Return a sentence about each run that lacks a measure."""
    return [
        f"{run} is left out: it has no {name} ({', '.join(known) or 'no measure at all'})."
        for run, known in figures.items()
        if name not in known
    ]


def _largest_group(figures: Sequence[QualityFigure]) -> int:
    return max(sum(figure.compares_with(other) for other in figures) for figure in figures)


def _overview(figures: Figures) -> str:
    lists = {run: ", ".join(known) or "none" for run, known in figures.items()}
    if len(set(lists.values())) == 1:
        return f"Known measures: {next(iter(lists.values()))}."
    return " ".join(f"{run} has {listed}." for run, listed in lists.items())
