"""Files that appear complete or not at all."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from loraprune.record.places import OutputExistsError, check_kind, check_place, place_of, telling_of_failed_writes
from loraprune.record.replaceable import is_file_of_checkpoint

LARGEST = 1 << 26
"""Bytes of the largest file that is replaced: those of ours are smaller."""


def check_file(path: Path, *, example: str, what: str = "", holds: bytes = b"", inputs: Iterable[object] = ()) -> None:
    """Make sure, before any work, that a file may be written, new or in place of an older one of its kind.

    Args:
        path: of the file.
        example: a name for one, for the message about a folder.
        what: the file is, for the message about another one.
        holds: what every file of its kind holds; one without it is not replaced, unless it is empty.
        inputs: what the command reads: files that exist, or anything else, which is passed over.

    Raises:
        OutputExistsError: something else stands there than an older file of its kind, or one that is read or belongs
            to a checkpoint.
        ValueError: nothing can be written there.
    """
    if path.is_dir():
        raise OutputExistsError(f"The output {path} is a folder. Name a file, such as {path / example}.")
    check_place(path)
    place = path.resolve()
    if path.exists() and (any(place_of(source) == place for source in inputs) or is_file_of_checkpoint(place.name)):
        raise OutputExistsError(f"The output {path} would replace a file that is read. Name another one.")
    size = path.stat().st_size if path.exists() and holds else 0
    if size > LARGEST or (size and holds not in path.read_bytes()):
        raise OutputExistsError(f"The output {path} exists and is no {what}. Name another file.")


def write_text(path: Path, text: str) -> None:
    """Write ``text`` as UTF-8 to ``path``, as :func:`write_bytes` does.

    Characters that UTF-8 cannot carry (lone surrogates, as a broken completion may hold) become question marks.
    """
    write_bytes(path, text.encode("utf-8", errors="replace"))


def write_bytes(path: Path, content: bytes) -> None:
    """Write ``content`` to ``path``: into a file beside it, which then takes its name.

    A reader sees the old content or the new, and an interrupted write leaves the old. Of a link, the file that it leads
    to is replaced. The file beside it is new, and its name cannot be foretold.

    Raises:
        OutputExistsError: something else than a file stands there.
        WriteError: the disk is full, or the file may not be written.
    """
    check_kind(path)
    place = path.resolve()
    temporary = place.with_name(f".{place.name}.{secrets.token_hex(8)}.tmp")
    with telling_of_failed_writes(str(path)):
        place.parent.mkdir(parents=True, exist_ok=True)
        try:
            # As open() does, which makes files for all whom the umask allows.
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(place)
            sync(place.parent)
        finally:
            temporary.unlink(missing_ok=True)


def open_up(path: Path, folder: Path) -> None:
    """Let those use a file whom the umask let use its folder: libraries write some that are the owner's alone."""
    if path.is_file() and not path.is_symlink():
        path.chmod(path.stat().st_mode | (folder.stat().st_mode & 0o666))


def sync(path: Path) -> None:
    """Have the system put a file, or the names in a folder, onto the disk; where it cannot, nothing happens."""
    with suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
