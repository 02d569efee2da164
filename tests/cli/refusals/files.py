"""Files for command lines that are to be refused."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from tests.cli.refusals.wrong import Prepare

GONE = object()
"""Stands for a field that is taken out."""


def config(**changes: Any) -> Prepare:
    """Changes fields of ``model/config.json``."""
    return fields("model/config.json", **changes)


def fields(name: str, **changes: Any) -> Prepare:
    """Changes fields of a JSON file."""

    def prepare(folder: Path) -> None:
        values = json.loads((folder / name).read_text()) | changes
        kept = {key: value for key, value in values.items() if value is not GONE}
        (folder / name).write_text(json.dumps(kept))

    return prepare


def written(name: str, content: str | bytes) -> Prepare:
    """Writes a file."""

    def prepare(folder: Path) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())

    return prepare


def rows(name: str, *values: Any) -> Prepare:
    """Writes JSON Lines."""
    return written(name, "".join(json.dumps(value) + "\n" for value in values))


def gone(*names: str) -> Prepare:
    """Deletes files."""

    def prepare(folder: Path) -> None:
        for name in names:
            (folder / name).unlink()

    return prepare


def renamed(old: str, new: str) -> Prepare:
    """Gives a file another name."""

    def prepare(folder: Path) -> None:
        (folder / old).rename(folder / new)

    return prepare


def folder_at(name: str) -> Prepare:
    """Puts an empty folder in the place of a file."""

    def prepare(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).mkdir(parents=True)

    return prepare


def fifo(name: str) -> Prepare:
    """Makes a pipe that nobody writes to."""

    def prepare(folder: Path) -> None:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).unlink(missing_ok=True)
        os.mkfifo(folder / name)

    return prepare


def cut(name: str, size: int) -> Prepare:
    """Leaves the first bytes of a file."""

    def prepare(folder: Path) -> None:
        (folder / name).write_bytes((folder / name).read_bytes()[:size])

    return prepare


def both(*prepares: Prepare) -> Prepare:
    """Does one thing after the other."""

    def prepare(folder: Path) -> None:
        for each in prepares:
            each(folder)

    return prepare
