"""Files that are written atomically: complete or not at all."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from loraprune.record.places import OutputExistsError, check_kind, check_place, place_of, telling_of_failed_writes
from loraprune.record.replaceable import is_file_of_checkpoint

LARGEST = 1 << 26
"""Size in bytes of the largest file that is replaced. Our own files are smaller."""


def check_file(path: Path, *, example: str, what: str = "", holds: bytes = b"", inputs: Iterable[object] = ()) -> None:
    """Check, before any work, that a file can be written: new, or in place of an older file of its kind.

    Args:
        path: path of the file.
        example: example of a file name, for the error about a folder.
        what: kind of file, for the error about a file of another kind.
        holds: text that every file of this kind contains. A file without it is not replaced, unless it is empty.
        inputs: files that the command reads. Anything that is not an existing file is ignored.

    Raises:
        OutputExistsError: ``path`` is not an older file of this kind, or it is an input or part of a checkpoint.
        ValueError: ``path`` cannot be written.
    """
    if path.is_dir():
        raise OutputExistsError(f"The output {path} is a folder. Name a file, such as {path / example}.")
    check_place(path)
    place = path.resolve()
    if path.exists() and (any(place_of(source) == place for source in inputs) or is_file_of_checkpoint(place.name)):
        raise OutputExistsError(f"The output {path} would replace a file that is read. Name another one.")
    size = path.stat().st_size if path.exists() and holds else 0
    if size > LARGEST or (size and holds not in path.read_bytes()):
        raise OutputExistsError(f"The output {path} exists and holds no {what}. Name another file.")


def write_text(path: Path, text: str) -> None:
    """Write ``text`` as UTF-8 to ``path``, like :func:`write_bytes`.

    Characters that UTF-8 cannot encode (lone surrogates, which a broken completion may contain) become question marks.
    """
    write_bytes(path, text.encode("utf-8", errors="replace"))


def write_bytes(path: Path, content: bytes) -> None:
    """Write ``content`` to a temporary file beside ``path``, then rename it to ``path``.

    A reader sees either the old content or the new. An interrupted write leaves the old content. If ``path`` is a link,
    its target is replaced. The temporary file is new and has an unpredictable name.

    Raises:
        OutputExistsError: ``path`` exists and is not a file.
        WriteError: the disk is full, or the file may not be written.
    """
    check_kind(path)
    place = path.resolve()
    temporary = place.with_name(f".{place.name}.{secrets.token_hex(8)}.tmp")
    with telling_of_failed_writes(str(path)):
        place.parent.mkdir(parents=True, exist_ok=True)
        try:
            # open() also creates files with the permissions that the umask allows.
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
    """Give a file the permissions of its folder under the umask. Some libraries make files private to the owner."""
    if path.is_file() and not path.is_symlink():
        path.chmod(path.stat().st_mode | (folder.stat().st_mode & 0o666))


def sync(path: Path) -> None:
    """Flush a file, or the entries of a folder, to disk. Do nothing if the system cannot."""
    with suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
