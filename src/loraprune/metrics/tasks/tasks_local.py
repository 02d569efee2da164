"""A local file of task items, checked and ready to be asked."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

LETTERS = "ABCDEFGHIJ"


class Form(Enum):
    """How the choices of an item are asked."""

    CHOICES = "choices"
    """One query, and a choice is what may follow it."""
    CONTEXTS = "contexts"
    """A choice is what comes before, and one continuation follows all of them: WinoGrande."""
    LETTERS = "letters"
    """The choices are listed in the question, and the answer is a letter: MMLU."""


@dataclass(frozen=True, kw_only=True)
class LocalTask:
    """Items of one file, all of one form.

    Attributes:
        name: of the task, for tables.
        form: how they are asked.
        rows: of :attr:`Form.CHOICES` and :attr:`Form.LETTERS` ``{"query", "choices", "gold"}``; of
            :attr:`Form.CONTEXTS` ``{"contexts", "continuation", "gold"}``. ``gold`` counts from 0.
        examples: rows that few-shot examples are taken from, in order; None if they are drawn from the other items.
        description: what stands before the first example.
        delimiter: between what is asked and the answer.
        files: SHA-256 of each file that was read, by its name.
    """

    name: str
    form: Form
    rows: Sequence[Mapping[str, Any]]
    examples: Sequence[Mapping[str, Any]] | None = None
    description: str = ""
    delimiter: str = " "
    files: Mapping[str, str]

    def check_fewshot(self, num_fewshot: int) -> None:
        """Check that there are examples enough.

        Raises:
            ValueError: there are fewer.
        """
        available = len(self.rows) - 1 if self.examples is None else len(self.examples)
        if num_fewshot > available:
            raise ValueError(
                f"{self.name} has {available} items for few-shot examples, and {num_fewshot} were asked for. "
                f"Set --num-fewshot to at most {available}."
            )


def sha256(path: Path) -> str:
    """Hash of a file's content."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
