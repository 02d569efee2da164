"""Whether something may be written to a place: asked before any work, and what is told when writing fails after it."""

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
"""What a system says that has no space for a file, or no longer lets it be written."""

_TORCH = re.compile(r"PytorchStreamWriter failed|unexpected pos|cannot be opened|iostream error")
"""How torch says that it could not write a file."""


class OutputExistsError(ValueError):
    """What stands at the place of an output is not to be replaced."""


class WriteError(OSError):
    """A result or a saved state could not be put where it belongs, after work was done."""


def check_kind(path: Path) -> None:
    """Make sure that nothing but a file or a folder stands at a place.

    Raises:
        OutputExistsError: a device, a FIFO or a socket stands there, or what this command prints goes there.
        ValueError: it cannot be told.
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
        raise OutputExistsError(f"The output {path} is where this command prints to. Name another one.")


def check_place(path: Path) -> None:
    """Make sure that a file or a folder may be made at a place; a file that is tried out vanishes again.

    Raises:
        OutputExistsError: see :func:`check_kind`.
        ValueError: nothing can be written there.
    """
    check_kind(path)
    standing = next(folder for folder in path.resolve().parents if folder.exists())
    try:
        with tempfile.TemporaryFile(dir=standing):
            pass
    except OSError as error:
        raise ValueError(
            f"The output {path} cannot be written: {standing} is no folder that you can write to ({error.strerror})."
        ) from error


def _is_open(found: os.stat_result, stream: int) -> bool:
    with suppress(OSError):
        return os.path.samestat(found, os.fstat(stream))
    return False


def place_of(source: object) -> Path | None:
    """Where on this machine something that is read lies; None of what is no file or folder here.

    Args:
        source: a path, a name, or an object of the transformers library, which knows where it came from.
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
    """Turn what libraries raise when a disk is full, or may no longer be written, into one error.

    Args:
        what: cannot be written, as the subject of the message.
        remedy: the last sentence of the message.

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
    """Why a file could not be written; None of any other error."""
    if isinstance(error, OSError):
        return os.strerror(error.errno) if error.errno in _REFUSALS else None
    if isinstance(error, SafetensorError):
        found = re.search(r"os error (\d+)", str(error))
        return os.strerror(int(found[1])) if found and int(found[1]) in _REFUSALS else None
    return "the disk is full, or may not be written to" if _TORCH.search(str(error)) else None
