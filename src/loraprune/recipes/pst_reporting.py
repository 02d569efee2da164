"""What a run tells that makes single weights zero while LoRA tunes the model: its report and its model card."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from loraprune.recipes.card import CardWords, card
from loraprune.recipes.reporting import completions_of, rows_of
from loraprune.recipes.tasks.measures import Measure
from loraprune.recipes.tasks.task import Task
from loraprune.report.data import Cut, Headline, HistoryPoint, ReportData

if TYPE_CHECKING:
    from loraprune.training.run import PruningRun


def _name(record: dict[str, Any]) -> str:
    name: str = record["base_model"].rstrip("/").rpartition("/")[2]
    return name


def pst_report(
    record: dict[str, Any], run: PruningRun, measures: Sequence[Measure], prompt: str | None, notes: tuple[str, ...]
) -> ReportData:
    """Gather what the report shows.

    Args:
        record: see :func:`loraprune.recipes.record.run_record`.
        run: that made the zeros.
        measures: that are shown, in their order.
        prompt: that the completions go on from.
        notes: what the reader has to know.
    """
    metrics = record["metrics"]
    sparsity = metrics["sparsity"]
    total = run.structure.num_parameters
    return ReportData(
        title=f"{_name(record)}, {sparsity['pattern']} sparse",
        model=record["base_model"],
        created=record["created"],
        headline=Headline(
            ratio=sparsity["reached"],
            target_ratio=sparsity["target"],
            total_before=total,
            total_after=total,
            prunable_before=sparsity["weights"],
            prunable_after=sparsity["weights"],
            sparsity=f"pst, {sparsity['pattern']}",
        ),
        rows=rows_of(metrics, measures),
        history=tuple(HistoryPoint(**point) for point in metrics["history"]),
        cuts=tuple(Cut(step=mask["step"], ratio=mask["ratio"]) for mask in sparsity["masks"]),
        completions=completions_of(metrics, prompt),
        settings=record["settings"],
        versions=record["versions"],
        command=record["command"] or "",
        notes=notes,
        machine=record["machine"],
    )


def pst_card(record: dict[str, Any], task: Task, runtimes: Sequence[str]) -> str:
    """Write the model card."""
    sparsity = record["metrics"]["sparsity"]
    return card(
        record,
        task,
        runtimes,
        title=f"{sparsity['pattern']} sparse",
        what=(
            f"A sparse copy of `{_name(record)}`: {sparsity['reached']:.2%} of the weights that LoRA adapted are\n"
            "zero. The masks were learnt (PST) while LoRA tuned the model, and the adapter is merged. Shapes and file\n"
            "size are those of the original, and plain inference is no faster. A further merged LoRA adapter would\n"
            "fill the zeros; `loraprune recover` tunes and keeps them."
        ),
        facts=(
            f"Zeros: {sparsity['zeros']:,} of {sparsity['weights']:,} adapted weights (target "
            f"{sparsity['target']:.2%}); {sparsity['after']['share']:.2%} of all weights of the\nblocks' linear layers."
        ),
        words=CardWords(tag="sparse", after="sparse", recorded="when the masks grew"),
    )
