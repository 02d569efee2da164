"""The model card of a run that makes single weights zero while LoRA tunes the model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from loraprune.report.card import CardWords, base_name, card
from loraprune.tasks.task import Task


def pst_card(record: dict[str, Any], task: Task, runtimes: Sequence[str]) -> str:
    """Write the model card."""
    sparsity = record["metrics"]["sparsity"]
    return card(
        record,
        task,
        runtimes,
        title=f"{sparsity['pattern']} sparse",
        what=(
            f"A sparse copy of `{base_name(record)}`: {sparsity['reached']:.2%} of the weights that LoRA adapted are\n"
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
