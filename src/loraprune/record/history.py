"""How a checkpoint was made, from the record beside it. A further run keeps this history."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from loraprune.data.hub import hub_or_cache
from loraprune.record.run_record import RECORD_FILE, History, RunRecord

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def base_pruning_of(model: PreTrainedModel) -> History | None:
    """Return the short history of the folder that a model in memory was loaded from, or None."""
    name = str(getattr(model.config, "_name_or_path", "") or "")
    return base_pruning(name) if name and Path(name).is_dir() else None


def base_pruning(name: str, revision: str | None = None) -> History | None:
    """Return the short history of a checkpoint that loraprune wrote, or None for other checkpoints.

    Args:
        name: a folder, or a name on the Hub.
        revision: revision of a Hub checkpoint.
    """
    path = stored_file(name, RECORD_FILE, revision)
    try:
        return None if path is None else RunRecord.read(path).summary()
    except (OSError, ValueError):
        return None


def stored_file(name: str, file: str, revision: str | None = None) -> Path | None:
    """Return the local path of a file of a folder or a Hub repository, downloaded if necessary, or None."""
    from transformers.utils import cached_file

    try:
        with hub_or_cache(name):
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
