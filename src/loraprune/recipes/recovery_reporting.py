"""What a run that tunes a pruned or sparse model tells: its report and its model card."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from loraprune.recipes.base_history import in_words
from loraprune.recipes.card import CardWords, card
from loraprune.recipes.reporting import completions_of, headline_of, rows_of
from loraprune.recipes.tasks.measures import Measure
from loraprune.recipes.tasks.task import Task
from loraprune.report.data import HistoryPoint, Recovery, ReportData

if TYPE_CHECKING:
    from loraprune.training.run import PruningRun


def _name(record: dict[str, Any]) -> str:
    name: str = record["base_model"].rstrip("/").rpartition("/")[2]
    return name


def recovery_report(
    record: dict[str, Any], run: PruningRun, measures: Sequence[Measure], prompt: str | None, notes: tuple[str, ...]
) -> ReportData:
    """Gather what the report shows.

    Args:
        record: see :func:`loraprune.recipes.record.run_record`.
        run: in which nothing was pruned.
        measures: that are shown, in their order.
        prompt: that the completions go on from.
        notes: what the reader has to know.
    """
    metrics = record["metrics"]
    sparsity = metrics.get("sparsity", {})
    history = {"base_pruning": record["base_pruning"]} if "base_pruning" in record else {}
    return ReportData(
        title=f"{_name(record)}, recovered",
        model=record["base_model"],
        created=record["created"],
        headline=headline_of(run.summary()),
        recovery=Recovery(
            zeros_before=sparsity["before"]["share"] if sparsity else None,
            zeros_after=sparsity["after"]["share"] if sparsity else None,
        ),
        before="before",
        after="after",
        rows=rows_of(metrics, measures),
        history=tuple(HistoryPoint(**point) for point in metrics["history"]),
        completions=completions_of(metrics, prompt),
        settings={**record["settings"], **history},
        versions=record["versions"],
        command=record["command"] or "",
        notes=notes,
        machine=record["machine"],
    )


def recovery_card(record: dict[str, Any], task: Task, runtimes: Sequence[str]) -> str:
    """Write the model card."""
    metrics = record["metrics"]
    was = in_words(record.get("base_pruning", {}))
    base = f"`{_name(record)}` ({was})" if was else f"`{_name(record)}`"
    facts = "No weight was removed."
    if "sparsity" in metrics:
        before, after = metrics["sparsity"]["before"], metrics["sparsity"]["after"]
        facts += (
            f" Zeros in the blocks' linear layers: {before['zeros']:,} of {before['weights']:,} before\n"
            f"({before['share']:.2%}), {after['zeros']:,} after ({after['share']:.2%})."
        )
    keeps = record["settings"]["recovery"]["keep_zeros"]
    how = "LoRA tuned it, and the adapter is merged."
    if keeps:
        how = "LoRA tuned it, and the adapter is merged. Weights that\nwere zero were masked in both, and are zero."
    return card(
        record,
        task,
        runtimes,
        title="recovered",
        what=f"A copy of {base}: {how}",
        facts=facts,
        words=CardWords(
            tag="recovered", before="before", after="after", recorded="what is known of how the base was pruned"
        ),
    )
