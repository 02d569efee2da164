"""The file that results are kept in: found again, and added to one by one, also by several runs at a time."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock

from loraprune.measure.evaluation.results import Entry, Results, ResultsError, read_results
from loraprune.record.atomic import write_text

logger = logging.getLogger("loraprune")

PATIENCE = 10.0
"""Seconds to wait for another run that writes, which takes a fraction of one."""


class ResultsFile:
    """A file of results, or none.

    Args:
        path: of the file; None keeps nothing.
        force: find nothing in it.

    Attributes:
        path: of the file.
        num_kept: entries that were added.

    Raises:
        ResultsError: what is there is no such file.
        ValueError: nothing can be written there.
    """

    def __init__(self, path: Path | None, *, force: bool) -> None:
        self.path, self.num_kept, self._force = path, 0, force
        if path is not None:
            place = next(folder for folder in path.absolute().parents if folder.exists())
            if not place.is_dir() or not os.access(place, os.W_OK):
                raise ValueError(f"Results cannot be written to {path}: {place} is no folder to write in.")
        self._read()

    def find(self, key: str) -> Entry | None:
        """The newest entry of a key that may be used again."""
        if self._force:
            return None
        try:
            return self._read().find(key)
        except ResultsError:  # it was in order when the run began; adding says so
            return None

    def add(self, entry: Entry) -> None:
        """Write an entry; where the file was damaged meanwhile or the disk is full, say so, and let the run go on."""
        if self.path is None:
            return
        try:
            with _alone():
                # Read anew: another run may have written since.
                write_text(self.path, self._read().with_(entry).to_text())
        except (ResultsError, OSError) as error:
            logger.warning("%s of %s cannot be kept, only printed: %s", entry.label, entry.model, error)
        else:
            self.num_kept += 1

    def _read(self) -> Results:
        return read_results(self.path) if self.path is not None and self.path.exists() else Results()


@contextmanager
def _alone() -> Iterator[None]:
    """Keep other runs of this user on this machine from writing results between our reading and our writing."""
    user = os.getuid() if hasattr(os, "getuid") else 0
    # One for all files, and not beside the results: it stays.
    lock = FileLock(Path(tempfile.gettempdir()) / f"loraprune-results-{user}.lock", timeout=PATIENCE)
    with suppress(OSError, NotImplementedError):  # where there is no such thing, the file is whole all the same
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
