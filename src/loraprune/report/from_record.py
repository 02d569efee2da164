"""Conversion of the record of a run to the data of its report."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from loraprune.importance.moving_average import Scores
from loraprune.record import numbers
from loraprune.record.codec import encode
from loraprune.record.pruning_course import DimensionRecord, PruningCourse
from loraprune.record.report_data import (
    Completion,
    Cut,
    Details,
    GroupMap,
    Headline,
    Importance,
    LayerWidth,
    Recovery,
    RefitError,
    ReportData,
    Row,
)
from loraprune.record.run_record import MatrixRecord, RunMetrics, RunRecord, SparsityCourse
from loraprune.report.before_after import notes_on_nan
from loraprune.report.figure import NONZERO_WEIGHTS
from loraprune.report.notes import notes_on_norms, notes_on_widths
from loraprune.structure.dimensions import Structure
from loraprune.structure.plan import Plan
from loraprune.tasks.registry import TASKS
from loraprune.tasks.task import NONZERO, PARAMETERS, Measure, Task

logger = logging.getLogger("loraprune")

MAP_CELLS = 64
"""Maximum number of cells per layer of a map."""


def task_of(record: RunRecord) -> Task:
    """Return the task of a run's model.

    Raises:
        ValueError: there is no task of that name.
    """
    task = next((task for task in TASKS if task.name == record.task), None)
    if task is None:
        raise ValueError(f"the task {record.task!r} is unknown")
    return task


def _rows_of(record: RunRecord) -> tuple[Row, ...]:
    """Measures with figures of both models."""
    metrics, rows = record.metrics, []
    for measure in _report_measures(record):
        dense, pruned = measure.of(metrics.dense), measure.of(metrics.pruned)
        if dense is not None and pruned is not None:
            row = Row(
                label=measure.label,
                unit=measure.unit,
                detail=measure.detail(metrics.pruned),
                dense=dense,
                unrecovered=None if metrics.unrecovered is None else measure.of(metrics.unrecovered),
                pruned=pruned,
            )
            rows.append(row)
    return tuple(rows)


def _report_measures(record: RunRecord) -> Sequence[Measure]:
    """Return the measures to show. For a sparse run without training, nonzero weights replace the parameters."""
    measures = task_of(record).measures
    if record.settings.oneshot and record.metrics.sparsity:
        return [NONZERO if measure is PARAMETERS else measure for measure in measures]
    return shown_measures(measures, record.metrics)


def shown_measures(measures: Sequence[Measure], metrics: RunMetrics) -> Sequence[Measure]:
    """Return the measures of the task. For a sparse model, nonzero weights follow the parameters."""
    if metrics.dense.nonzero is None:
        return measures
    return [shown for each in measures for shown in ((each, NONZERO) if each is PARAMETERS else (each,))]


def _completions_of(metrics: RunMetrics, prompt: str | None) -> tuple[Completion, ...]:
    """Completions of a prompt by the models."""
    dense, pruned = metrics.dense.completion, metrics.pruned.completion
    if prompt is None or dense is None or pruned is None:
        return ()
    unrecovered = None if metrics.unrecovered is None else metrics.unrecovered.completion
    return (Completion(prompt=prompt, dense=dense, unrecovered=unrecovered, pruned=pruned),)


def importance_of(structure: Structure, plan: Plan, scores_by_name: Scores) -> dict[str, Importance]:
    """Scores of the groups, with whether each was kept."""
    found = {}
    for dimension in structure:
        scores = scores_by_name.get(dimension.name)
        if scores is not None:
            kept = set(plan.kept[dimension.name])
            found[dimension.name] = Importance(
                kind=dimension.kind,
                layer=dimension.layer,
                scores=tuple(scores.tolist()),
                kept=tuple(group in kept for group in range(dimension.num_groups)),
            )
    return found


def report_of(
    record: RunRecord,
    *,
    importance: Mapping[str, Importance] | None = None,
    prompt: str | None = None,
    notes: tuple[str, ...] = (),
) -> ReportData:
    """Collect the content of the report of a run. Records of earlier versions contain less.

    Args:
        record: record of the run.
        importance: scores of the groups, which the record does not hold.
        prompt: prompt of the completions.
        notes: remarks for the reader.

    Raises:
        ValueError: the record has no measures, or its task is unknown.
    """
    metrics = record.metrics
    if metrics.dense.parameters is None:
        raise ValueError("it holds no measures, like all records of save_pruned. `loraprune eval` measures it")
    dimensions = () if metrics.pruning is None else metrics.pruning.dimensions
    matrices = (metrics.sparsity and metrics.sparsity.matrices) or ()
    recovery = None if record.settings.recovery is None else _recovery(metrics.sparsity)
    what, headline = _outcome(record, metrics.dense.parameters)
    history = {"base_pruning": encode(record.base_pruning)} if recovery and record.base_pruning else {}
    before, after = ("before", "after") if recovery else ("dense", "pruned")
    return ReportData(
        title=f"{record.base_model.rstrip('/').rpartition('/')[2]}, {what}",
        model=record.base_model,
        created=record.created,
        headline=headline,
        recovery=recovery,
        before=before,
        after=after,
        rows=_rows_of(record),
        steps=metrics.steps,
        history=metrics.history or (),
        evaluations=metrics.evaluations or (),
        cuts=_cuts_of(metrics),
        layers=widths_of(dimensions, record.plan) or zeroed_layers(matrices),
        importance=importance or {},
        maps=group_maps(dimensions, record.plan),
        refit_errors=() if metrics.pruning is None else refit_errors_of(metrics.pruning),
        phases=metrics.phases,
        completions=_completions_of(metrics, prompt),
        settings={**encode(record.settings), **history},
        versions=record.versions,
        command=record.command or "",
        notes=(*notes_on_widths(metrics), *notes_on_norms(metrics), *notes, *notes_on_nan(metrics, before, after)),
        machine=encode(record.machine),
        details=matrix_table(matrices),
    )


def _recovery(sparsity: SparsityCourse | None) -> Recovery:
    """Effect of a recovery run on the zeros."""
    if sparsity is None or sparsity.before is None or sparsity.after is None:
        return Recovery()
    return Recovery(zeros_before=sparsity.before.share, zeros_after=sparsity.after.share)


def _outcome(record: RunRecord, total: int) -> tuple[str, Headline]:
    """Describe the result in a word or two, and return the removed share of the model."""
    pruning, sparsity = record.metrics.pruning, record.metrics.sparsity
    if record.settings.recovery is not None:
        return "recovered", _unchanged(total, total, ratio=0.0, target_ratio=0.0)
    if pruning is not None:
        headline = Headline(
            ratio=pruning.ratio,
            target_ratio=pruning.target_ratio,
            total_before=pruning.parameters_before,
            total_after=pruning.parameters,
            prunable_before=pruning.prunable_parameters_before,
            prunable_after=pruning.prunable_parameters,
        )
        return f"{100 * pruning.ratio:.0f} % of the prunable parameters removed", headline
    if sparsity is None or sparsity.reached is None or sparsity.target is None or sparsity.weights is None:
        raise ValueError("it does not say what was pruned")
    headline = _unchanged(total, sparsity.weights, ratio=sparsity.reached, target_ratio=sparsity.target)
    sparse = f"{record.settings.method}, {sparsity.pattern}"
    return f"{sparsity.pattern} sparse", replace(headline, sparsity=sparse)


def _unchanged(total: int, prunable: int, *, ratio: float, target_ratio: float) -> Headline:
    """A result of the same size as the model before the run."""
    return Headline(
        ratio=ratio,
        target_ratio=target_ratio,
        total_before=total,
        total_after=total,
        prunable_before=prunable,
        prunable_after=prunable,
    )


# The course of a run, as its report shows it.


def _cuts_of(metrics: RunMetrics) -> tuple[Cut, ...]:
    """The cuts (or mask updates) in order; cuts at the same step are combined."""
    if metrics.pruning is not None:
        return tuple({cut.step: cut for cut in metrics.pruning.cuts or ()}.values())
    masks = (metrics.sparsity and metrics.sparsity.masks) or ()
    return tuple({mask.step: Cut(step=mask.step, ratio=mask.ratio) for mask in masks}.values())


def refit_errors_of(pruning: PruningCourse) -> tuple[RefitError, ...]:
    """Errors of the consumers at each cut. For several cuts without training, only the last one of each dimension."""
    last: dict[str, int] = {}
    for error in pruning.refit_errors:
        last[error.dimension] = max(error.cut_number or 0, last.get(error.dimension, 0))
    shown = [error for error in pruning.refit_errors if (error.cut_number or 0) == last[error.dimension]]
    return tuple(
        RefitError(step=error.step, kind=error.kind, layer=error.layer, cut=error.cut, repaired=error.repaired)
        for error in shown
    )


def group_maps(
    dimensions: Sequence[DimensionRecord], kept: Mapping[str, Sequence[int]], cells: int = MAP_CELLS
) -> tuple[GroupMap, ...]:
    """Positions of the removed groups in each layer, without dimensions that layers share.

    Args:
        dimensions: dimensions of the model before the run.
        kept: groups kept, by name of the dimension.
        cells: maximum number of cells per layer. With more groups, equally long runs of neighbors share a cell.
    """
    maps = []
    for dimension in dimensions:
        if dimension.layer is None:
            continue
        total, stayed = dimension.groups, set(kept[dimension.name])
        size = math.ceil(total / cells)
        runs = (range(start, min(start + size, total)) for start in range(0, total, size))
        shares = tuple(sum(group in stayed for group in run) / len(run) for run in runs)
        maps.append(GroupMap(kind=dimension.kind, layer=dimension.layer, kept=shares, groups_per_cell=size))
    return tuple(maps)


def widths_of(dimensions: Sequence[DimensionRecord], kept: Mapping[str, Sequence[int]]) -> tuple[LayerWidth, ...]:
    """Groups kept in each layer; for whole blocks, which ones; empty for dimensions without a layer."""
    if [dimension.kind for dimension in dimensions] == ["blocks"]:
        (blocks,) = dimensions
        stayed = set(kept[blocks.name])
        return tuple(
            LayerWidth(layer=number, kind="blocks", total=1, kept=int(number in stayed))
            for number in range(blocks.groups)
        )
    return tuple(
        LayerWidth(layer=each.layer, kind=each.kind, total=each.groups, kept=len(kept[each.name]))
        for each in dimensions
        if each.layer is not None
    )


# Matrices of a sparse model, as shown in a report.


def zeroed_layers(matrices: Sequence[MatrixRecord]) -> tuple[LayerWidth, ...]:
    """Nonzero weights of each layer."""
    totals: dict[int, list[int]] = {}
    for matrix in matrices:
        total = totals.setdefault(matrix.layer, [0, 0])
        total[0] += matrix.weights
        total[1] += matrix.weights - matrix.zeros
    return tuple(
        LayerWidth(layer=layer, kind=NONZERO_WEIGHTS, total=weights, kept=kept)
        for layer, (weights, kept) in totals.items()
    )


def matrix_table(matrices: Sequence[MatrixRecord]) -> tuple[Details, ...]:
    """Zeros, error and time of every matrix. Stacked experts in the same place are combined."""
    if not matrices:
        return ()
    places: dict[tuple[int, str], list[MatrixRecord]] = {}
    for matrix in matrices:
        places.setdefault((matrix.layer, matrix.kind), []).append(matrix)
    rows = []
    for (layer, kind), found in places.items():
        weights, zeros = sum(matrix.weights for matrix in found), sum(matrix.zeros for matrix in found)
        errors = [matrix.error for matrix in found if matrix.error is not None]
        rows.append(
            (
                str(layer),
                kind,
                f"{weights:,}",
                f"{100 * zeros / weights:.2f} %",
                f"{100 * sum(errors) / len(errors):.2f} %" if errors else numbers.MISSING,
                f"{sum(matrix.seconds for matrix in found):.2f}",
            )
        )
    heads = ("layer", "matrix", "weights", "zeros", "output error", "seconds")
    return (Details(title="Matrices", heads=heads, rows=tuple(rows)),)


# The report of a finished run. An error while drawing it must not lose the model.


def write_run_page(report: ReportData, folder: Path, output: Path) -> None:
    """Write page and data of a report. If that fails, warn and keep the data to make it from later.

    Args:
        report: report of the run.
        folder: folder to write into.
        output: final path of that folder, for the message.
    """
    page = folder / "report.html"
    try:
        from loraprune.report.page import write_report

        write_report(report, page)
    except Exception as error:
        what = f"{type(error).__name__}: {error}".splitlines()[0]
        logger.warning(
            "warning: the report could not be drawn (%s). The result is complete; try again: loraprune report %s",
            what,
            output,
        )
        with suppress(Exception):
            report.to_json(page.with_suffix(".json"))
