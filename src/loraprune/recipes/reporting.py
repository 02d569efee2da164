"""From the record of a run to what its report shows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from loraprune.averaging import Scores
from loraprune.plan import Plan
from loraprune.recipes.tasks.measures import NONZERO, PARAMETERS, Measure
from loraprune.report.data import (
    Completion,
    Cut,
    Headline,
    HistoryPoint,
    Importance,
    LayerWidth,
    ReportData,
    Row,
)
from loraprune.structure import Structure

if TYPE_CHECKING:
    from loraprune.training.run import PruningRun


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


def layer_widths(structure: Structure, plan: Plan) -> tuple[LayerWidth, ...]:
    """Groups that stayed in each layer; of whole blocks, which ones; nothing of what has no layer."""
    if "blocks" in structure.kinds:
        (blocks,) = structure
        return tuple(
            LayerWidth(layer=number, kind="blocks", total=1, kept=int(number in plan.kept[blocks.name]))
            for number in range(blocks.num_groups)
        )
    return tuple(
        LayerWidth(
            layer=dimension.layer,
            kind=dimension.kind,
            total=dimension.num_groups,
            kept=plan.count(dimension.name),
        )
        for dimension in structure
        if not dimension.spans_blocks
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


def headline_of(pruning: dict[str, Any]) -> Headline:
    """How much of the model is gone, from the metrics of a run that made it smaller."""
    return Headline(
        ratio=pruning["ratio"],
        target_ratio=pruning["target_ratio"],
        total_before=pruning["parameters_before"],
        total_after=pruning["parameters"],
        prunable_before=pruning["prunable_parameters_before"],
        prunable_after=pruning["prunable_parameters"],
    )


def report_data(
    record: dict[str, Any], run: PruningRun, measures: Sequence[Measure], prompt: str | None, notes: tuple[str, ...]
) -> ReportData:
    """Gather what the report of a joint run shows.

    Args:
        record: see :func:`loraprune.recipes.record.run_record`.
        run: structure, plan and scores.
        measures: that are shown, in their order.
        prompt: that the completions go on from.
        notes: what the reader has to know.
    """
    metrics = record["metrics"]
    pruning = metrics["pruning"]
    unique_cuts = {cut["step"]: cut for cut in pruning["cuts"]}
    model = record["base_model"].rstrip("/").rpartition("/")[2]
    return ReportData(
        title=f"{model}, {pruning['ratio']:.0%} pruned",
        model=record["base_model"],
        created=record["created"],
        headline=headline_of(pruning),
        rows=rows_of(metrics, measures),
        history=tuple(HistoryPoint(**point) for point in metrics["history"]),
        cuts=tuple(
            Cut(
                step=cut["step"],
                ratio=cut["ratio"],
                widths={kind: tuple(counts) for kind, counts in cut["widths"].items()},
            )
            for cut in unique_cuts.values()
        ),
        layers=layer_widths(run.structure, run.plan),
        importance=importance_of(run.structure, run.plan, run.importance),
        completions=completions_of(metrics, prompt),
        settings=record["settings"],
        versions=record["versions"],
        command=record["command"] or "",
        notes=notes,
        machine=record["machine"],
    )
