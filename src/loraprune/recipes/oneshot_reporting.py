"""What a run without training tells: its report and its model card."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from loraprune.averaging import Scores
from loraprune.plan import Plan
from loraprune.recipes.card import all_widths, card, removed_kinds, removed_shares
from loraprune.recipes.preparing_oneshot import OneshotJob
from loraprune.recipes.reporting import completions_of, headline_of, importance_of, layer_widths, rows_of
from loraprune.recipes.tasks.measures import NONZERO, PARAMETERS, Measure
from loraprune.report import numbers
from loraprune.report.data import Details, Headline, LayerWidth, ReportData

if TYPE_CHECKING:
    from loraprune.sparsity.layers import MatrixRecord

NOTED_DEVIATION = 0.002
SEEN_DIFFERENCE = 0.005


def _zeroed_layers(matrices: Sequence[MatrixRecord]) -> tuple[LayerWidth, ...]:
    """Weights of each layer that are not zero; nothing where every layer has the same share, which needs no picture."""
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


def _matrix_table(matrices: Sequence[MatrixRecord]) -> Details:
    """Zeros, error and time of every matrix; of stacked experts, of all that stand in one place."""
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
    return Details(title="Matrices", heads=heads, rows=tuple(rows))


def _measures(job: OneshotJob) -> tuple[Measure, ...]:
    """Those of the task; where nothing becomes smaller, weights that are not zero in place of parameters."""
    measures = job.task.measures
    if job.oneshot.structured:
        return measures
    return tuple(NONZERO if measure is PARAMETERS else measure for measure in measures)


def notes_of(job: OneshotJob, metrics: dict[str, Any]) -> tuple[str, ...]:
    """What the reader has to know."""
    if not job.oneshot.structured:
        target, reached = metrics["sparsity"]["target"], metrics["sparsity"]["reached"]
        if abs(reached - target) <= NOTED_DEVIATION:
            return ()
        return (f"The sparsity is {reached:.2%} rather than {target:.2%}: rows have whole numbers of weights.",)
    reached, target = metrics["pruning"]["ratio"], metrics["pruning"]["target_ratio"]
    if reached == 0.0:
        return (f"Nothing was removed: the ratio of {target:g} is less than half of the smallest step.",)
    if abs(reached - target) <= NOTED_DEVIATION:
        return ()
    why = "head counts are those that the config accepts, and FFN widths are rounded"
    if job.oneshot.value("allocation") == "global":
        why = "a group goes as a whole or not at all"
    if job.structure.spans_blocks:
        why = "blocks go as a whole" if "blocks" in job.structure.kinds else "the hidden size is rounded"
    return (f"The ratio is {reached:.2%} rather than {target:.2%}: {why}.",)


def report_of(
    job: OneshotJob, record: dict[str, Any], plan: Plan, importance: Scores, matrices: Sequence[MatrixRecord]
) -> ReportData:
    """Gather what the report of a run without training shows."""
    metrics = record["metrics"]
    model = record["base_model"].rstrip("/").rpartition("/")[2]
    structure = job.structure
    if job.oneshot.structured:
        headline = headline_of(metrics["pruning"])
        title = f"{model}, {headline.ratio:.0%} pruned"
        layers = layer_widths(structure, plan)
    else:
        sparsity = metrics["sparsity"]
        headline = Headline(
            ratio=sparsity["reached"],
            target_ratio=sparsity["target"],
            total_before=structure.num_parameters,
            total_after=structure.num_parameters,
            prunable_before=sparsity["weights"],
            prunable_after=sparsity["weights"],
            sparsity=f"{job.oneshot.name}, {sparsity['pattern']}",
        )
        title = f"{model}, {sparsity['pattern']} sparse"
        layers = _zeroed_layers(matrices)
    return ReportData(
        title=title,
        model=record["base_model"],
        created=record["created"],
        headline=headline,
        rows=rows_of(metrics, _measures(job)),
        layers=layers,
        importance=importance_of(structure, plan, importance),
        completions=completions_of(metrics, job.options.prompt),
        settings=record["settings"],
        versions=record["versions"],
        command=record["command"] or "",
        notes=notes_of(job, metrics),
        machine=record["machine"],
        details=(_matrix_table(matrices),) if matrices else (),
    )


def card_of(job: OneshotJob, record: dict[str, Any], runtimes: Sequence[str]) -> str:
    """Write the model card of a run without training."""
    metrics, config = record["metrics"], job.oneshot
    name = record["base_model"].rstrip("/").rpartition("/")[2]
    if config.structured:
        pruning = metrics["pruning"]
        title = f"{pruning['ratio']:.0%} pruned"
        what = (
            f"A structurally pruned copy of `{name}`: {removed_kinds(job.structure)} were removed without training.\n"
            f"{all_widths(pruning['widths'], job.structure)}"
        )
        facts = (
            f"{removed_shares(pruning)} Method `{config.name}`,\nallocation `{config.value('allocation')}`, repair "
            f"`{pruning['repair']}`."
        )
    else:
        sparsity = metrics["sparsity"]
        title = f"{sparsity['pattern']} sparse"
        how = f"{sparsity['pattern']}, method `{config.name}`"
        what = (
            f"A sparse copy of `{name}`, made without training: {sparsity['reached']:.2%} of the weights of the\n"
            f"blocks' linear layers are zero ({how}). Shapes and file size are those of the\noriginal, and plain "
            "inference is no faster. A merged LoRA adapter would fill the zeros; `loraprune recover`\ntunes and keeps "
            "them."
        )
        facts = f"Zeros: {sparsity['zeros']:,} of {sparsity['weights']:,} weights."
    return card(record, job.task, runtimes, title=title, what=what, facts=facts)
