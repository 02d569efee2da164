"""What a run without training tells: notes for its report, and its model card."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from loraprune.recipes.steps.check_oneshot import OneshotJob
from loraprune.report.card import CardWords, all_widths, base_name, card, removed_kinds, removed_shares
from loraprune.tasks.measures import NONZERO, PARAMETERS, Measure

NOTED_DEVIATION = 0.002


def measures_of(job: OneshotJob) -> tuple[Measure, ...]:
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


def card_of(job: OneshotJob, record: dict[str, Any], runtimes: Sequence[str]) -> str:
    """Write the model card of a run without training."""
    metrics, config = record["metrics"], job.oneshot
    name = base_name(record)
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
    return card(record, job.task, runtimes, title=title, what=what, facts=facts, words=CardWords(command="oneshot"))
