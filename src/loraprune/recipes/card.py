"""The model card of a pruned checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def _row(label: str, metrics: dict[str, Any], key: str, form: str) -> str:
    before, after = metrics["dense"].get(key), metrics["pruned"].get(key)
    if before is None or after is None:
        return ""
    return f"| {label} | {before:{form}} | {after:{form}} |\n"


def _loading(record: dict[str, Any]) -> str:
    pruned = record["metrics"]["pruning"]
    widths = pruned["cuts"][-1]["widths"] if pruned["cuts"] else {}
    kept = ", ".join(f"{counts[0]} {kind.replace('heads', 'KV heads')}" for kind, counts in widths.items())
    return f"Every layer has {kept}." if kept else "Nothing was pruned."


def model_card(record: dict[str, Any]) -> str:
    """Write the card from the record of a run (see :func:`loraprune.recipes.record.run_record`)."""
    metrics = record["metrics"]
    pruning = metrics["pruning"]
    settings = record["settings"]["pruning"]
    length = metrics["pruned"].get("segment_length")
    rows = (
        _row("parameters", metrics, "parameters", ",d")
        + _row(f"held-out perplexity ({length}-token segments)", metrics, "perplexity", ".2f")
        + _row(f"forward pass, {metrics['pruned'].get('latency_tokens')} tokens (ms)", metrics, "latency_ms", ".1f")
    )
    command = f"```\n{record['command']}\n```\n\n" if record["command"] else ""
    base = record["base_model"]
    is_hub_name = base.count("/") == 1 and not base.startswith((".", "/", "~")) and not Path(base).exists()
    hub_name = f"base_model: {base}\n" if is_hub_name else ""
    return f"""---
library_name: transformers
{hub_name}tags: [loraprune, pruned]
---
# {base.rstrip("/").rpartition("/")[2]}, {pruning["ratio"]:.0%} pruned

A structurally pruned copy of `{base.rstrip("/").rpartition("/")[2]}`: attention heads and FFN channels were removed
while LoRA tuned the model, and the adapter is merged. {_loading(record)} It is an ordinary checkpoint:
`AutoModelForCausalLM.from_pretrained` loads it without further code.

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
