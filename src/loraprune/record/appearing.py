"""Folders that are written atomically: complete or not at all."""

from __future__ import annotations

import ctypes
import errno
import os
import secrets
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

from loraprune.record.atomic import open_up, sync
from loraprune.record.claims import claimed
from loraprune.record.places import OutputExistsError, WriteError, telling_of_failed_writes
from loraprune.record.replaceable import check_standing

_TAKEN = {errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR, errno.EISDIR}
_HERE = -100
"""Linux's AT_FDCWD: relative paths start from the working directory."""
_EXCHANGE = 2
"""Linux's RENAME_EXCHANGE."""


@contextmanager
def appearing_folder(
    output: Path, *, overwrite: bool = False, check: Callable[[Path], None] | None = None
) -> Iterator[Path]:
    """Yield a temporary folder to write into. It replaces ``output`` if the block succeeds and is removed otherwise.

    ``output`` is checked again before it is replaced. If it must not be replaced, the result stays in a folder beside
    it.

    Args:
        output: the folder to create.
        overwrite: whether an existing result is replaced.
        check: called with the complete folder. If it raises an ``ArithmeticError``, the result stays beside ``output``,
            and the error names its folder.

    Raises:
        OutputInUseError: another run writes to ``output``.
        WriteError: the disk is full, or ``output`` exists and must not be replaced.
    """
    output = output.resolve()
    with claimed(output):
        temporary = _beside(output, "partial")
        try:
            with telling_of_failed_writes(str(output)):
                temporary.mkdir()
                yield temporary
                for path in (*temporary.rglob("*"), temporary):
                    open_up(path, temporary)
                    sync(path)
                if check is not None:
                    _check(check, temporary, output)
                put_in_place(temporary, output, overwrite=overwrite)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def _beside(output: Path, what: str) -> Path:
    return output.with_name(f".{output.name}.{secrets.token_hex(8)}.{what}")


def _check(check: Callable[[Path], None], made: Path, output: Path) -> None:
    try:
        check(made)
    except ArithmeticError as error:
        raise type(error)(f"{error} It is in {_keep_beside(made, output)}.") from error


def _keep_beside(made: Path, output: Path) -> Path:
    """Move a folder to an alternative name and return that name."""
    kept = next(path for path in _other_names(output) if not path.exists())
    made.rename(kept)
    sync(output.parent)
    return kept


def put_in_place(made: Path, output: Path, *, overwrite: bool) -> None:
    """Move a folder to its final name, atomically if the system supports it. A folder of that name is removed.

    Raises:
        WriteError: the existing folder must not be replaced; the message says where the result is.
    """
    try:
        check_standing(output, overwrite=overwrite)
        if output.exists():
            _replace(made, output)
        else:
            made.rename(output)
    except (OutputExistsError, OSError) as error:
        if isinstance(error, OSError) and error.errno not in _TAKEN:
            raise
        kept = _keep_beside(made, output)
        raise WriteError(
            f"{output} was created or changed during the run, so it is not replaced. The result is in {kept}."
        ) from error
    sync(output.parent)


def _other_names(output: Path) -> Iterator[Path]:
    yield output.with_name(f"{output.name}.new")
    yield from (output.with_name(f"{output.name}.new-{number}") for number in count(2))


def _replace(made: Path, output: Path) -> None:
    if exchange(made, output):
        return  # after the swap, this name holds the old folder
    old = _beside(output, "old")
    output.replace(old)
    try:
        made.replace(output)
    except BaseException:
        old.replace(output)
        raise
    shutil.rmtree(old)


def exchange(first: Path, second: Path) -> bool:
    """Swap the names of two folders in one step. Return False if the system or the file system cannot."""
    if sys.platform != "linux":
        return False
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except AttributeError:  # a C library from before 2018
        return False
    done: int = rename(_HERE, os.fsencode(first), _HERE, os.fsencode(second), _EXCHANGE)
    return done == 0
