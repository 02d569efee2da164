"""One run per output: a lock beside the output, and removal of the leftovers of killed runs."""

from __future__ import annotations

import logging
import os
import re
import shutil
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from loraprune.record.places import check_place

logger = logging.getLogger("loraprune")

_MARK = r"[0-9a-f]{8,32}"

_held: set[tuple[int, Path | None]] = set()
"""Outputs that this process has claimed, with the claiming threads."""


class OutputInUseError(ValueError):
    """Another run writes to the same output."""


@contextmanager
def claimed(output: Path | None, *, patience: float = 0.0) -> Iterator[None]:
    """Keep other runs from an output until the block ends, and remove the leftovers of killed runs.

    The lock is a file beside the output and is removed at the end. The lock of a dead process blocks no other run.

    Args:
        output: file or folder; None claims nothing.
        patience: seconds to wait for another run.

    Raises:
        OutputInUseError: another run has claimed the output.
        OutputExistsError, ValueError: see :func:`~loraprune.record.places.check_place`.
    """
    key = (threading.get_ident(), output and output.resolve())
    if key[1] is None or key in _held:
        yield
        return
    output = key[1]
    check_place(output)
    made = [folder for folder in output.parents if not folder.exists()]
    output.parent.mkdir(parents=True, exist_ok=True)
    try:
        lock = _locked(output, patience)
        _held.add(key)
        try:
            clear_leftovers(output)
            yield
        finally:
            _held.discard(key)
            _unlock(lock)
    finally:
        with suppress(OSError):  # stop at the first folder that is not empty
            for folder in made:
                folder.rmdir()


def _locked(output: Path, patience: float) -> FileLock | None:
    """Take the lock of an output. Return None if the file system does not support locks."""
    path = output.with_name(f".{output.name}.lock")
    while True:
        lock = FileLock(path)
        try:
            lock.acquire(timeout=patience)
        except Timeout:
            raise OutputInUseError(
                f"{output} is being written to by another run ({_owner(path)}). Wait for it, or name another output."
            ) from None
        except (OSError, NotImplementedError) as error:
            logger.warning("warning: %s cannot be locked against other runs: %s", output, error)
            return None
        if _stands(lock, path):
            with suppress(OSError):  # on some systems, the lock also blocks this process
                path.write_text(f"host {socket.gethostname()}, process {os.getpid()}\n", encoding="utf-8")
            return lock
        lock.release()  # the previous run removed this file while we waited


def _stands(lock: FileLock, path: Path) -> bool:
    descriptor = lock._context.lock_file_fd
    with suppress(FileNotFoundError):
        return descriptor is None or os.path.samestat(os.fstat(descriptor), path.stat())
    return False


def _owner(path: Path) -> str:
    with suppress(OSError, UnicodeDecodeError):
        return path.read_text(encoding="utf-8").strip() or "of an unknown host"
    return "of an unknown host"


def _unlock(lock: FileLock | None) -> None:
    if lock is not None:
        with suppress(OSError):  # systems that do not allow removing open files
            Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()


def clear_leftovers(output: Path) -> None:
    """Remove the leftovers of killed runs beside ``output``, and report them.

    If a run was killed while it replaced a folder, the old folder is restored, unless another one has taken its place.
    """
    pattern = re.compile(rf"\.{re.escape(output.name)}\.{_MARK}\.(partial|old)")
    found = [path for path in output.parent.iterdir() if pattern.fullmatch(path.name) and not path.is_symlink()]
    # Newest first: it was at the output last.
    for path in sorted(found, key=lambda path: path.stat().st_mtime, reverse=True):
        if path.suffix == ".old" and not output.exists():
            path.replace(output)
            logger.warning("Restored %s: a run was killed while it replaced this folder.", output)
        else:
            shutil.rmtree(path, ignore_errors=True)
            logger.warning("Removed the leftovers of a killed run: %s", path)
