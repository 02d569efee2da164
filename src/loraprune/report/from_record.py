"""From the record of a run to what its report shows."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from loraprune.importance.moving_average import Scores
from loraprune.record import numbers
from loraprune.record.report_data import (
    Completion,
    Details,
    Headline,
    Importance,
    LayerWidth,
    Recovery,
    ReportData,
    Row,
)
from loraprune.record.run_record import cuts_of, group_maps, points_of, refit_errors_of, widths_of
from loraprune.sparsity.whole_model import MatrixRecord
from loraprune.structure.dimensions import Structure
from loraprune.structure.plan import Plan
from loraprune.tasks.task import NONZERO, PARAMETERS, Measure

logger = logging.getLogger("loraprune")


def _row(metrics: dict[str, Any], measure: Measure) -> Row | None:
    dense, pruned = metrics["dense"].get(measure.key), metrics["pruned"].get(measure.key)
    if dense is None or pruned is None:
        return None
    unrecovered = metrics.get("unrecovered", {}).get(measure.key)
    return Row(
        label=measure.label,
        unit=measure.unit,
        detail=measure.detail(metrics["pruned"]),
        dense=dense,
        unrecovered=unrecovered,
        pruned=pruned,
    )


def _rows_of(metrics: dict[str, Any], measures: Sequence[Measure]) -> tuple[Row, ...]:
    """Measures of both models, of which there are figures."""
    rows = (_row(metrics, measure) for measure in measures)
    return tuple(row for row in rows if row is not None)


def shown_measures(measures: Sequence[Measure], metrics: dict[str, Any]) -> tuple[Measure, ...]:
    """Those of the task, and of a sparse model also the weights that are not zero, below the parameters."""
    if NONZERO.key not in metrics["dense"]:
        return tuple(measures)
    return tuple(
        shown for measure in measures for shown in ((measure, NONZERO) if measure is PARAMETERS else (measure,))
    )


def completions_of(metrics: dict[str, Any], prompt: str | None) -> tuple[Completion, ...]:
    """How the models went on from a prompt."""
    if prompt is None or "completion" not in metrics["dense"]:
        return ()
    return (
        Completion(
            prompt=prompt,
            dense=metrics["dense"]["completion"],
            unrecovered=metrics.get("unrecovered", {}).get("completion"),
            pruned=metrics["pruned"]["completion"],
        ),
    )


def importance_of(structure: Structure, plan: Plan, scores_by_name: Scores) -> dict[str, Importance]:
    """Scores of the groups with what became of them."""
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
    record: Mapping[str, Any],
    measures: Sequence[Measure],
    *,
    importance: Mapping[str, Importance] | None = None,
    prompt: str | None = None,
    notes: tuple[str, ...] = (),
) -> ReportData:
    """Gather what the report of a run shows; records of earlier versions tell less.

    Args:
        record: see :func:`loraprune.record.run_record.run_record`.
        measures: that are shown, in their order.
        importance: scores of the groups, which the record does not hold.
        prompt: that the completions go on from.
        notes: what the reader has to know.
    """
    settings, metrics = record["settings"], record["metrics"]
    pruning, sparsity = metrics.get("pruning", {}), metrics.get("sparsity", {})
    dimensions, kept, matrices = pruning.get("dimensions", ()), record["plan"], _matrices_of(sparsity)
    recovery = _recovery(sparsity) if "recovery" in settings else None
    what, headline = _outcome(record)
    history = {"base_pruning": record["base_pruning"]} if recovery and "base_pruning" in record else {}
    return ReportData(
        title=f"{record['base_model'].rstrip('/').rpartition('/')[2]}, {what}",
        model=record["base_model"],
        created=record["created"],
        headline=headline,
        recovery=recovery,
        before="before" if recovery else "dense",
        after="after" if recovery else "pruned",
        rows=_rows_of(metrics, measures),
        steps=metrics.get("steps"),
        history=points_of(metrics),
        cuts=cuts_of(pruning or sparsity),
        layers=widths_of(dimensions, kept) or zeroed_layers(matrices),
        importance=importance or {},
        maps=group_maps(dimensions, kept),
        refit_errors=refit_errors_of(pruning),
        phases=metrics.get("phases", {}),
        completions=completions_of(metrics, prompt),
        settings={**settings, **history},
        versions=record["versions"],
        command=record["command"] or "",
        notes=notes,
        machine=record["machine"],
        details=matrix_table(matrices),
    )


def _recovery(sparsity: Mapping[str, Any]) -> Recovery:
    """What a run that prunes nothing did to zeros."""
    if not sparsity:
        return Recovery()
    return Recovery(zeros_before=sparsity["before"]["share"], zeros_after=sparsity["after"]["share"])


def _outcome(record: Mapping[str, Any]) -> tuple[str, Headline]:
    """What the run made of its model, in a word or two, and how much of the model is gone."""
    settings, metrics = record["settings"], record["metrics"]
    total = metrics["dense"]["parameters"]
    if "recovery" in settings:
        nothing = {"total_before": total, "total_after": total, "prunable_before": total, "prunable_after": total}
        return "recovered", Headline(ratio=0.0, target_ratio=0.0, **nothing)
    if "pruning" in metrics:
        headline = headline_of(metrics["pruning"])
        return f"{headline.ratio:.0%} pruned", headline
    sparsity = metrics["sparsity"]
    method = settings["oneshot"]["method"] if "oneshot" in settings else settings["pruning"]["criterion"]
    headline = Headline(
        ratio=sparsity["reached"],
        target_ratio=sparsity["target"],
        total_before=total,
        total_after=total,
        prunable_before=sparsity["weights"],
        prunable_after=sparsity["weights"],
        sparsity=f"{method}, {sparsity['pattern']}",
    )
    return f"{sparsity['pattern']} sparse", headline


def headline_of(pruning: Mapping[str, Any]) -> Headline:
    """How much of the model is gone, from the metrics of a run that made it smaller."""
    return Headline(
        ratio=pruning["ratio"],
        target_ratio=pruning["target_ratio"],
        total_before=pruning["parameters_before"],
        total_after=pruning["parameters"],
        prunable_before=pruning["prunable_parameters_before"],
        prunable_after=pruning["prunable_parameters"],
    )


# What became of the matrices of a sparse model, as a report shows it.

SEEN_DIFFERENCE = 0.005


def _matrices_of(sparsity: Mapping[str, Any]) -> tuple[MatrixRecord, ...]:
    """Matrices as the record of a run without training has them; none of other runs."""
    return tuple(MatrixRecord(**matrix) for matrix in sparsity.get("matrices", ()))


def zeroed_layers(matrices: Sequence[MatrixRecord]) -> tuple[LayerWidth, ...]:
    """Weights of each layer that are not zero; nothing where every layer has the same share, which needs no picture."""
    if not matrices:
        return ()
    totals: dict[int, list[int]] = {}
    for matrix in matrices:
        total = totals.setdefault(matrix.layer, [0, 0])
        total[0] += matrix.weights
        total[1] += matrix.weights - matrix.zeros
    shares = [kept / weights for weights, kept in totals.values()]
    if max(shares) - min(shares) < SEEN_DIFFERENCE:
        return ()
    return tuple(
        LayerWidth(layer=layer, kind="weights_that_are_not_zero", total=weights, kept=kept)
        for layer, (weights, kept) in totals.items()
    )


def matrix_table(matrices: Sequence[MatrixRecord]) -> tuple[Details, ...]:
    """Zeros, error and time of every matrix; of stacked experts, of all that stand in one place."""
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
                f"{zeros / weights:.2%}",
                f"{sum(errors) / len(errors):.2%}" if errors else numbers.MISSING,
                f"{sum(matrix.seconds for matrix in found):.2f}",
            )
        )
    heads = ("layer", "matrix", "weights", "zeros", "output error", "seconds")
    return (Details(title="Matrices", heads=heads, rows=tuple(rows)),)


# The report of a run that is over: what can go wrong in drawing it is no reason to lose the model.


def write_run_page(report: ReportData, folder: Path, output: Path) -> None:
    """Write page and data of a report; where that fails, say so, and leave the data to make it from.

    Args:
        report: of the run.
        folder: to write into.
        output: where that folder will be, for the message.
    """
    page = folder / "report.html"
    try:
        from loraprune.report.page import write_report

        write_report(report, page)
    except Exception as error:
        what = f"{type(error).__name__}: {error}".splitlines()[0]
        logger.warning(
            "warning: the report could not be drawn (%s). All else is there, and `loraprune report %s` tries it again.",
            what,
            output,
        )
        with suppress(Exception):
            report.to_json(page.with_suffix(".json"))
