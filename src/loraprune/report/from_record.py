"""From the record of a run to what its report shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from loraprune.importance.moving_average import Scores
from loraprune.record.course import cuts_of, group_maps, points_of, refit_errors_of, widths_of
from loraprune.record.report_data import Completion, Headline, Importance, Recovery, ReportData, Row
from loraprune.report.matrix_details import matrices_of, matrix_table, zeroed_layers
from loraprune.structure.dimensions import Structure
from loraprune.structure.plan import Plan
from loraprune.tasks.measures import NONZERO, PARAMETERS, Measure


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


def rows_of(metrics: dict[str, Any], measures: Sequence[Measure]) -> tuple[Row, ...]:
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
    dimensions, kept, matrices = pruning.get("dimensions", ()), record["plan"], matrices_of(sparsity)
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
        rows=rows_of(metrics, measures),
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
