"""Finished steps of a long run, saved in a folder, so an interrupted run continues after the last one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from loraprune.processes.ranks import from_main, is_main
from loraprune.record.atomic import sync
from loraprune.record.places import telling_of_failed_writes

if TYPE_CHECKING:
    import torch

STEP_PREFIX = "oneshot_"
_FACTS = "facts"
_REMEDY = "Free some space, and continue with --resume."


@dataclass(frozen=True, kw_only=True)
class SavedStep:
    """A finished step.

    Attributes:
        tensors: tensors by name.
        facts: plain values.
    """

    tensors: Mapping[str, torch.Tensor]
    facts: Mapping[str, Any]


class SavedSteps:
    """Files of finished steps: tensors, with plain values in the header. Files are written atomically.

    All processes of a run read the same files; the first one writes them.

    Args:
        folder: folder of the files; None saves and finds nothing.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder

    @property
    def keeps(self) -> bool:
        """Whether steps are saved."""
        return self._folder is not None

    def path(self, name: str) -> Path:
        """File of a step."""
        assert self._folder is not None
        return self._folder / f"{STEP_PREFIX}{name}.safetensors"

    def found(self, name: str) -> SavedStep | None:
        """Return a step that an earlier run finished, or None.

        Raises:
            ValueError: the file of the step is damaged.
        """
        if self._folder is None or not from_main(lambda: self.path(name).is_file()):
            return None
        try:
            with safe_open(self.path(name), framework="pt") as file:
                facts = json.loads(file.metadata()[_FACTS])
                return SavedStep(tensors={key: file.get_tensor(key) for key in file.keys()}, facts=facts)  # noqa: SIM118
        except (SafetensorError, OSError, KeyError, ValueError) as error:
            raise ValueError(f"{self.path(name)} is damaged ({error}). Start again with --overwrite.") from error

    def keep(self, name: str, tensors: Mapping[str, torch.Tensor], facts: Mapping[str, Any]) -> None:
        """Write a finished step.

        Raises:
            WriteError: the disk is full or not writable.
        """
        if self._folder is None or not is_main():
            return
        path = self.path(name)
        temporary = path.with_suffix(".tmp")
        with telling_of_failed_writes(f"The state of the run in {self._folder}", _REMEDY):
            self._folder.mkdir(parents=True, exist_ok=True)
            plain = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
            save_file(plain, temporary, metadata={_FACTS: json.dumps(facts)})
            sync(temporary)
            temporary.replace(path)
            sync(self._folder)
