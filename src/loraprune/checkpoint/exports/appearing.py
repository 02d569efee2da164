"""Output files that appear complete or not at all."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from loraprune.checkpoint.exports.checkpoint import RuntimeFormatError
from loraprune.record.atomic import check_file, open_up, sync
from loraprune.record.claims import claimed
from loraprune.record.places import check_kind, telling_of_failed_writes

_HEAD = 256
"""Bytes of a file to read to find its format."""


def check_free(output: Path, *, overwrite: bool, holds: bytes) -> None:
    """Make sure that a file may be written.

    Args:
        output: the file.
        overwrite: whether a file of the same format may be replaced.
        holds: bytes in the head of every file of the format.

    Raises:
        RuntimeFormatError: the file exists and ``overwrite`` is off or it has another format, or it is a folder.
        OutputExistsError: it is neither a file nor a folder.
        ValueError: it cannot be written.
    """
    if output.is_dir():
        raise RuntimeFormatError(f"{output} is a folder; name a file with -o.")
    check_file(output, example=output.name)
    if not output.exists():
        return
    if not overwrite:
        raise RuntimeFormatError(f"{output} exists. Name another file with -o, or pass --overwrite.")
    with output.open("rb") as file:
        head = file.read(_HEAD)
        if head and holds not in head:
            raise RuntimeFormatError(
                f"{output} has another format, so it is not replaced, not even with --overwrite. Name another file "
                "with -o."
            )


@contextmanager
def appearing_files(output: Path) -> Iterator[Path]:
    """Yield a path to write to, with the name of ``output``, in a temporary folder.

    If the block ends without an error, all files in that folder move to the folder of ``output``. ``output`` moves
    last, because it may refer to the other files.

    Raises:
        OutputInUseError: another run writes to ``output``.
        WriteError: the disk is full.
    """
    output = output.resolve()
    with claimed(output):
        folder = output.with_name(f".{output.name}.{secrets.token_hex(8)}.partial")
        try:
            with telling_of_failed_writes(str(output)):
                folder.mkdir()
                yield folder / output.name
                made = sorted(folder.iterdir(), key=lambda path: path.name == output.name)
                for path in made:
                    check_kind(output.with_name(path.name))
                    open_up(path, folder)
                    sync(path)
                for path in made:
                    path.replace(output.with_name(path.name))
                sync(output.parent)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
