"""What the record of a checkpoint says of how it was pruned, so that a further run does not lose it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedModel

RECORD_FILE = "pruning.json"


def base_pruning_of(model: PreTrainedModel) -> dict[str, Any] | None:
    """The short history of the folder that a model in memory was loaded from; None where there is none."""
    name = str(getattr(model.config, "_name_or_path", "") or "")
    return base_pruning(name) if name and Path(name).is_dir() else None


def base_pruning(name: str, revision: str | None = None) -> dict[str, Any] | None:
    """The short history of a checkpoint that loraprune wrote; None of others.

    Args:
        name: a folder, or a name on the hub.
        revision: of a hub checkpoint.
    """
    path = stored_file(name, RECORD_FILE, revision)
    try:
        record = None if path is None else json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return summary_of(record) if isinstance(record, dict) else None


def stored_file(name: str, file: str, revision: str | None = None) -> Path | None:
    """Where a file of a folder or of a hub repository lies, fetched if need be; None where there is none."""
    from transformers.utils import cached_file

    try:
        found = cached_file(
            name,
            file,
            revision=revision,
            _raise_exceptions_for_gated_repo=False,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )
    except (OSError, ValueError):
        return None
    return None if found is None else Path(found)


def summary_of(record: dict[str, Any]) -> dict[str, Any]:
    """Method and amount of a record, and what the record itself says of its base."""
    settings, metrics = _mapping(record, "settings"), _mapping(record, "metrics")
    oneshot, joint, recovery = (_mapping(settings, name) for name in ("oneshot", "pruning", "recovery"))
    pruning = _mapping(metrics, "pruning") or _mapping(record, "pruning")
    sparsity = _mapping(metrics, "sparsity")
    by_training = "recover" if recovery else "prune" if joint else None
    found = {
        "base_model": record.get("base_model"),
        "created": record.get("created"),
        "recipe": "oneshot" if oneshot else by_training,
        "method": oneshot.get("method") or joint.get("criterion"),
        "ratio": pruning.get("ratio"),
        "pattern": sparsity.get("pattern"),
        "sparsity": sparsity.get("reached", _mapping(sparsity, "after").get("share")),
        "base_pruning": _mapping(record, "base_pruning") or None,
    }
    return {key: value for key, value in found.items() if value is not None}


def _mapping(values: dict[str, Any], name: str) -> dict[str, Any]:
    value = values.get(name)
    return value if isinstance(value, dict) else {}


def history_in_words(history: dict[str, Any]) -> str:
    """``"2:4 sparse by wanda"``, ``"50% pruned by fisher"``: what the base was; empty where that is not known."""
    method = f" by `{history['method']}`" if "method" in history else ""
    ratio, sparsity = history.get("ratio"), history.get("sparsity")
    if "pattern" in history:
        return f"{history['pattern']} sparse{method}"
    if isinstance(ratio, float) and ratio > 0.0:
        return f"{ratio:.0%} pruned{method}"
    before = _mapping(history, "base_pruning")
    if before and not ("pattern" in before and not sparsity):
        return history_in_words(before)
    return f"{sparsity:.0%} sparse" if isinstance(sparsity, float) and sparsity > 0.0 else ""
