"""Checks before any work that an output can be written, and clear errors if writing fails afterwards."""

from __future__ import annotations

import errno
import os
import re
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError

_KINDS = {stat.S_IFCHR: "device", stat.S_IFBLK: "device", stat.S_IFIFO: "FIFO", stat.S_IFSOCK: "socket"}

_REFUSALS = {
    errno.EACCES,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EIO,
    errno.ENOSPC,
    errno.EPERM,
    errno.EROFS,
}
"""System error codes for a full disk or a place that is no longer writable."""

_TORCH = re.compile(r"PytorchStreamWriter failed|unexpected pos|cannot be opened|iostream error")
"""Messages of torch if it cannot write a file."""


class OutputExistsError(ValueError):
    """The output exists and must not be replaced."""


class WriteError(OSError):
    """A result or a saved state could not be written after the work was done."""


def check_kind(path: Path) -> None:
    """Check that a path is a file, a folder or free.

    Raises:
        OutputExistsError: the path is a device, a FIFO or a socket, or the output of this command is redirected to it.
        ValueError: the path cannot be inspected.
    """
    try:
        found = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        raise ValueError(f"The output {path} cannot be written: {error.strerror}. Name another one.") from error
    if not (stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode)):
        kind = _KINDS.get(stat.S_IFMT(found.st_mode), "special file")
        raise OutputExistsError(f"The output {path} is a {kind}, which is never replaced. Name another one.")
    if any(_is_open(found, stream) for stream in (1, 2)):
        raise OutputExistsError(f"The output {path} receives what this command prints. Name another one.")


def check_place(path: Path) -> None:
    """Check that a file or a folder can be created at a path. The file created for the test is removed.

    Raises:
        OutputExistsError: see :func:`check_kind`.
        ValueError: the path cannot be written.
    """
    check_kind(path)
    standing = next(folder for folder in path.resolve().parents if folder.exists())
    try:
        with tempfile.TemporaryFile(dir=standing):
            pass
    except OSError as error:
        raise ValueError(
            f"The output {path} cannot be written: {standing} is not a folder that you can write to ({error.strerror})."
        ) from error


def _is_open(found: os.stat_result, stream: int) -> bool:
    with suppress(OSError):
        return os.path.samestat(found, os.fstat(stream))
    return False


def place_of(source: object) -> Path | None:
    """Return the local path of an input, or None if it is not a local file or folder.

    Args:
        source: a path, a name, or an object of the transformers library that records its origin.
    """
    name = source if isinstance(source, (str, Path)) else getattr(source, "name_or_path", None)
    if not isinstance(name, (str, Path)) or not str(name):
        return None
    path = Path(name).expanduser()
    with suppress(OSError, ValueError):
        return path.resolve() if path.exists() else None
    return None


@contextmanager
def telling_of_failed_writes(what: str, remedy: str = "Free some space, or name another output.") -> Iterator[None]:
    """Convert the errors of libraries for a full or no longer writable disk into one error.

    Args:
        what: the thing that cannot be written: the subject of the message.
        remedy: last sentence of the message.

    Raises:
        WriteError: something could not be written.
    """
    try:
        yield
    except WriteError:
        raise
    except (OSError, RuntimeError, SafetensorError) as error:
        reason = _refusal(error)
        if reason is None:
            raise
        raise WriteError(f"{what} cannot be written: {reason}. {remedy}") from error


def _refusal(error: Exception) -> str | None:
    """Return the reason why a file could not be written, or None for any other error."""
    if isinstance(error, OSError):
        return os.strerror(error.errno) if error.errno in _REFUSALS else None
    if isinstance(error, SafetensorError):
        found = re.search(r"os error (\d+)", str(error))
        return os.strerror(int(found[1])) if found and int(found[1]) in _REFUSALS else None
    return "the disk is full or not writable" if _TORCH.search(str(error)) else None
