"""A row of the tables: a command line, the files that it names, and what its answer must say."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

Prepare = Callable[[Path], object]
"""Makes the files that a command line names, in the folder that it runs in."""


def nothing(folder: Path) -> None:
    """Makes no file."""


@dataclass(frozen=True)
class Wrong:
    """A command line that must be refused.

    It runs in an empty folder that holds ``model`` (a tiny Llama with its tokenizer), ``data.jsonl`` (texts) and what
    ``prepare`` makes. The answer is one line on standard error, with exit code 2, that contains each of ``says``.
    """

    line: str
    says: tuple[str, ...]
    prepare: Prepare = nothing

    @property
    def arguments(self) -> list[str]:
        """The command line as the shell would split it."""
        return shlex.split(self.line)


def wrong(line: str, *says: str, prepare: Prepare = nothing) -> Wrong:
    """A row; ``says`` are parts of the answer: the thing that is wrong, and the remedy."""
    return Wrong(line, says, prepare)
