"""The model card of a pruned checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from loraprune.recipes.tasks.measures import CARD_FORMATS, Measure
from loraprune.recipes.tasks.task import Task
from loraprune.structure import Structure

GROUPS = {
    "heads": "attention heads",
    "query_heads": "query heads",
    "channels": "FFN channels",
    "expert_channels": "channels of experts",
    "experts": "experts",
}
"""Kinds of prunable dimensions in words; others are called as they are."""


def _row(metrics: dict[str, Any], measure: Measure) -> str:
    before, after = metrics["dense"].get(measure.key), metrics["pruned"].get(measure.key)
    if before is None or after is None or measure.card is None:
        return ""
    form = CARD_FORMATS[measure.unit]
    return f"| {measure.card(metrics['pruned'])} | {before:{form}} | {after:{form}} |\n"


def _widths(kind: str, counts: list[int], structure: Structure) -> str:
    name = "KV heads" if kind == "heads" and structure.query_heads_per_group > 1 else kind.replace("_", " ")
    low, high = min(counts), max(counts)
    return f"{low} {name}" if low == high else f"{low} to {high} {name}"


def _all_widths(record: dict[str, Any], structure: Structure) -> str:
    pruned = record["metrics"]["pruning"]
    widths = pruned["cuts"][-1]["widths"] if pruned["cuts"] else {}
    kept = ", ".join(_widths(kind, counts, structure) for kind, counts in widths.items())
    return f"Every layer has {kept}." if kept else "Nothing was pruned."


def _loading(auto_class: str, runtimes: Sequence[str]) -> str:
    listed = "\n".join(f"- {runtime}" for runtime in runtimes)
    return f"`{auto_class}.from_pretrained` loads it.\nWhere it runs:\n\n{listed}"


def model_card(record: dict[str, Any], task: Task, structure: Structure, runtimes: Sequence[str]) -> str:
    """Write the card of a run.

    Args:
        record: see :func:`loraprune.recipes.record.run_record`.
        task: that the model was tuned for.
        structure: of the model before pruning.
        runtimes: what loads the result, and how.
    """
    metrics = record["metrics"]
    pruning = metrics["pruning"]
    settings = record["settings"]["pruning"]
    rows = "".join(_row(metrics, measure) for measure in task.measures)
    removed = " and ".join(GROUPS.get(kind, kind.replace("_", " ")) for kind in structure.kinds)
    loading = _loading(task.auto_class, runtimes)
    command = f"```\n{record['command']}\n```\n\n" if record["command"] else ""
    base = record["base_model"]
    is_hub_name = base.count("/") == 1 and not base.startswith((".", "/", "~")) and not Path(base).exists()
    hub_name = f"base_model: {base}\n" if is_hub_name else ""
    return f"""---
library_name: transformers
{hub_name}tags: [loraprune, pruned]
---
# {base.rstrip("/").rpartition("/")[2]}, {pruning["ratio"]:.0%} pruned

A structurally pruned copy of `{base.rstrip("/").rpartition("/")[2]}`: {removed} were removed
while LoRA tuned the model, and the adapter is merged. {_all_widths(record, structure)} {loading}

| | dense | pruned |
|---|---|---|
{rows}
Removed: {pruning["ratio"]:.2%} of the parameters of the prunable dimensions (target {pruning["target_ratio"]:.2%}),
{1 - pruning["parameters"] / pruning["parameters_before"]:.2%} of all parameters. Criterion `{settings["criterion"]}`,
allocation `{settings["allocation"]}`, refit {"on" if settings["refit"] else "off"}.

## How it was made
{command}With loraprune {record["versions"].get("loraprune", "")}. `pruning.json` holds every setting, version, seed and
measure, and the groups that stayed. The license is that of the base model.
"""
