"""The model that a figure in a file belongs to, by the hash of its files, or by its name and path."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from loraprune.checkpoint.fingerprint import folder_fingerprint

Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True, kw_only=True)
class Known:
    """A model that figures may belong to.

    Attributes:
        folder: folder of the model; it need not exist.
        name: name in files, if that is not a path from here: a Hub name.
    """

    folder: Path
    name: str | None = None


@dataclass(frozen=True)
class Ownership(Generic[Key]):
    """Owner of a figure.

    Attributes:
        key: key of the model; None for another model.
        stale: whether the figure is from before the model's files changed.
    """

    key: Key | None = None
    stale: bool = False


class Owners(Generic[Key]):
    """Models that figures may belong to. Each is hashed at most once, and only if a figure may be its own.

    Args:
        models: models by key; if several match, the first one counts.
        by_own_name: whether the last part of a name is enough if no path matches and only one model has that name.
    """

    def __init__(self, models: Mapping[Key, Known], *, by_own_name: bool = False) -> None:
        self._models = dict(models)
        self._by_own_name = by_own_name
        self._hashes: dict[Key, str | None] = {}

    def of(self, name: str, fingerprint: str | None, file: Path) -> Ownership[Key]:
        """Return the model of a figure.

        Args:
            name: name of its model in the file; a folder is resolved from here and from the file.
            fingerprint: hash of its model, if the file has one.
            file: file of the figure.
        """
        placed = self._at_its_place(name, file)
        for meant in placed or (self._called(name) if self._by_own_name else ()):
            if not fingerprint or self._hash(meant) in (None, fingerprint):
                return Ownership(meant)
        if fingerprint:
            moved = next((key for key in self._models if self._hash(key) == fingerprint), None)
            if moved is not None:
                return Ownership(moved)
        return Ownership(placed[0], stale=True) if placed else Ownership()

    def _at_its_place(self, name: str, file: Path) -> list[Key]:
        places = {Path(name).expanduser().resolve(), (file.parent / name).resolve()}
        return [key for key, model in self._models.items() if model.folder.resolve() in places or model.name == name]

    def _called(self, name: str) -> list[Key]:
        """The only model with this last part of its name, in any folder; empty if there are several."""
        own = Path(name).name
        alike = [key for key, model in self._models.items() if own in (model.folder.resolve().name, _last(model.name))]
        return alike if len(alike) == 1 else []

    def _hash(self, key: Key) -> str | None:
        """Hash of a folder that holds a model; None if there is nothing to hash."""
        if key not in self._hashes:
            folder = self._models[key].folder
            holds = folder.is_dir() and any(folder.glob("*.safetensors"))
            self._hashes[key] = folder_fingerprint(folder) if holds else None
        return self._hashes[key]


def _last(name: str | None) -> str | None:
    return None if name is None else Path(name).name
