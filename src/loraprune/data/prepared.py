"""Rows that are ready to be trained on, and what became of those they were made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from datasets import Dataset


@dataclass(frozen=True, kw_only=True)
class PreparedRows:
    """What a task makes of a data set.

    Attributes:
        dataset: rows as the task's collator takes them.
        facts: about the data, for the record.
        lost: what became of rows that are not trained on as they stand, with their number.
        total: rows that there were.
    """

    dataset: Dataset
    facts: Mapping[str, Any]
    lost: Mapping[str, int] = field(default_factory=dict)
    total: int
