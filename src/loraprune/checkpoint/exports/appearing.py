"""Output files that appear complete or not at all."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from loraprune.checkpoint.exports.checkpoint import RuntimeFormatError


def check_free(output: Path, *, overwrite: bool) -> None:
    """Make sure that a file may be written.

    Raises:
        RuntimeFormatError: it exists and ``overwrite`` is off, or it is a folder.
    """
    if output.is_dir():
        raise RuntimeFormatError(f"{output} is a folder; name a file with -o.")
    if output.exists() and not overwrite:
        raise RuntimeFormatError(f"{output} exists. Name another file with -o, or pass --overwrite.")


@contextmanager
def appearing_files(output: Path) -> Iterator[Path]:
    """A path to write to under the name of ``output``, in a folder of its own that vanishes in the end.

    When the block ends well, all that it wrote into that folder moves beside ``output``, which itself comes last: a
    format may keep its tensors in further files, and ``output`` must not point to one that is not there yet.
    """
    output = output.resolve()
    output.parent.mkdir(parents=True, exist_ok=True)
    folder = output.with_name(f".{output.name}.{uuid.uuid4().hex[:8]}.partial")
    folder.mkdir()
    try:
        yield folder / output.name
        for path in sorted(folder.iterdir(), key=lambda path: path.name == output.name):
            path.replace(output.with_name(path.name))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
