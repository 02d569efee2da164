"""How a checkpoint was made, as the record beside it says: so that a further run does not lose it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from loraprune.data.hub import hub_or_cache
from loraprune.record.run_record import RECORD_FILE, History, RunRecord

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def base_pruning_of(model: PreTrainedModel) -> History | None:
    """The short history of the folder that a model in memory was loaded from; None where there is none."""
    name = str(getattr(model.config, "_name_or_path", "") or "")
    return base_pruning(name) if name and Path(name).is_dir() else None


def base_pruning(name: str, revision: str | None = None) -> History | None:
    """The short history of a checkpoint that loraprune wrote; None of others.

    Args:
        name: a folder, or a name on the hub.
        revision: of a hub checkpoint.
    """
    path = stored_file(name, RECORD_FILE, revision)
    try:
        return None if path is None else RunRecord.read(path).summary()
    except (OSError, ValueError):
        return None


def stored_file(name: str, file: str, revision: str | None = None) -> Path | None:
    """Where a file of a folder or of a hub repository lies, fetched if need be; None where there is none."""
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
