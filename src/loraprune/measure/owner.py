"""Which of several models a figure in a file is of: known by the hash of its files, or else by its name and place."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from loraprune.checkpoint.fingerprint import folder_fingerprint

Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True, kw_only=True)
class Known:
    """A model that figures may be of.

    Attributes:
        folder: that holds it; it need not be there.
        name: as files call it, where that is no place seen from here: a hub name.
    """

    folder: Path
    name: str | None = None


@dataclass(frozen=True)
class Ownership(Generic[Key]):
    """What a figure is of.

    Attributes:
        key: of the model; None of another one.
        stale: whether it is of what that model was before its files changed.
    """

    key: Key | None = None
    stale: bool = False


class Owners(Generic[Key]):
    """The models that figures may be of; each is hashed once, and only if a figure may be its own.

    Args:
        models: by key; of several that fit, the first one counts.
        by_own_name: whether the last part of a name will do where no place fits and one model alone is called so.
    """

    def __init__(self, models: Mapping[Key, Known], *, by_own_name: bool = False) -> None:
        self._models = dict(models)
        self._by_own_name = by_own_name
        self._hashes: dict[Key, str | None] = {}

    def of(self, name: str, fingerprint: str | None, file: Path) -> Ownership[Key]:
        """Tell which model a figure is of.

        Args:
            name: of its model, as the file has it; a folder is looked for from here and from the file.
            fingerprint: hash of its model, if the file has one.
            file: that holds the figure.
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
        """The only model of that own name, whatever folders it was in; none where there are several."""
        own = Path(name).name
        alike = [key for key, model in self._models.items() if own in (model.folder.resolve().name, _last(model.name))]
        return alike if len(alike) == 1 else []

    def _hash(self, key: Key) -> str | None:
        """Of a folder that holds a model; None where there is nothing to hash."""
        if key not in self._hashes:
            folder = self._models[key].folder
            holds = folder.is_dir() and any(folder.glob("*.safetensors"))
            self._hashes[key] = folder_fingerprint(folder) if holds else None
        return self._hashes[key]


def _last(name: str | None) -> str | None:
    return None if name is None else Path(name).name
