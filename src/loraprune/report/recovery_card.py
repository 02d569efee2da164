"""The model card of a run that tunes a pruned or sparse model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from loraprune.record.history import in_words
from loraprune.report.card import CardWords, base_name, card
from loraprune.tasks.task import Task


def recovery_card(record: dict[str, Any], task: Task, runtimes: Sequence[str]) -> str:
    """Write the model card."""
    metrics = record["metrics"]
    was = in_words(record.get("base_pruning", {}))
    base = f"`{base_name(record)}` ({was})" if was else f"`{base_name(record)}`"
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
            tag="recovered",
            before="before",
            after="after",
            recorded="what is known of how the base was pruned",
            command="recover",
        ),
    )
