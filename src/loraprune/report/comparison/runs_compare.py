"""The recipe of a comparison of runs: read what they left, and hold quality against parameters, latency and time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from loraprune.measure.evaluation.results import Entry
from loraprune.record.timestamp import timestamp
from loraprune.record.versions import versions
from loraprune.report.comparison.compare import Measured, grouped
from loraprune.report.comparison.qualities import entry_figures, record_figures
from loraprune.report.comparison.quality_choice import common_quality, named_quality, quality_names, without
from loraprune.report.comparison.result import RunsComparison
from loraprune.report.comparison.results import Subject, Subjects, read_entries
from loraprune.report.comparison.runs import Run, last_part, read_runs
from loraprune.report.comparison.speeds import benched_speeds, named_source, recorded_speeds

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

    Nothing is measured: figures are those of the runs' own records and of the files that are named. Figures that do
    not compare (of other data, segment lengths or dense models) come into groups of their own.

    Args:
        runs: folders that ``prune``, ``oneshot`` or ``recover`` wrote, or of models that the files tell about.
        evaluation: files of ``loraprune eval``; ``evaluation.json`` in a run's folder is read unasked.
        bench: files of ``loraprune bench``.
        quality: name of the measure, such as ``"perplexity"`` or ``"wikitext2@2048"``; None takes the one that most
            runs have in common.
        latency: name of the work that was timed: ``"recorded"``, or ``"prefill"``, ``"decoding"``, ``"decoding@8"``
            of a benchmark; None takes what is known of most runs, benchmarks first.
        names: that the runs are shown under, in their order; None takes those of the folders.
        command: that is told to the reader.

    Raises:
        ValueError: a folder is no run, a file cannot be read, or the runs have no measure in common.
    """
    given = [runs] if isinstance(runs, (str, Path)) else list(runs)
    entries = read_entries(evaluation, [Path(folder) for folder in given])
    benches = _read_benches(bench)
    told_of = [entry.model for _, entry in entries] + [model.name for result in benches for model in result.models]
    found = read_runs(given, names, told_of)
    measured, subjects = _measured(found, entries)
    sources = [*benched_speeds(bench, benches, subjects), recorded_speeds(measured.runs)]
    if latency is not None:
        sources = [named_source(latency, sources)]
    if quality is None:
        name = common_quality(measured.figures, measured.model_figures)
    else:
        name = named_quality(quality, measured.figures)
    groups, notes = grouped(measured, name, sources)
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


def _measured(runs: Sequence[Run], entries: Sequence[tuple[Path, Entry]]) -> tuple[Measured, Subjects]:
    """Tell the dense models from the runs, and take figures of both from entries and records."""
    began_with = {last_part(run.dense_name): run.dense_name for run in runs if run.record is not None}
    plain = {run.folder.resolve().name: run for run in runs if run.record is None}
    dense = {name: run for name, run in plain.items() if name in began_with}
    compared = [run for run in runs if run.record is not None or run not in dense.values()]
    subjects = Subjects.among(
        {run.name: run.folder for run in compared},
        {full: dense[name].folder if name in dense else Path(full) for name, full in began_with.items()},
    )
    by_subject: dict[Subject | None, list[Entry]] = {}
    for file, entry in sorted(entries, key=lambda found: found[1].created):
        by_subject.setdefault(subjects.of(entry.model, entry.fingerprint, file), []).append(entry)
    figures = {run.name: entry_figures(by_subject.get(Subject(run.name), ())) for run in compared}
    measured = Measured(
        runs=tuple(compared),
        figures={run.name: figures[run.name] | record_figures(run) for run in compared},
        model_figures={name: entry_figures(by_subject.get(Subject(name, began=True), ())) for name in began_with},
        model_names={name: dense[name].name if name in dense else name for name in began_with},
    )
    return measured, subjects
