"""The formats that data comes in, told by the columns."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Any

from datasets import Dataset

Row = dict[str, Any]

_BATCH = 1000


class DataFormat(Enum):
    """What one row of the data is."""

    MESSAGES = "messages"
    PROMPT_COMPLETION = "prompt_completion"
    INSTRUCTION = "instruction"
    SOURCE_TARGET = "source_target"
    TEXT = "text"


@dataclass(frozen=True, kw_only=True)
class Columns:
    """The columns that make up a format."""

    format: DataFormat
    needed: tuple[str, ...]
    optional: tuple[str, ...] = ()

    def __str__(self) -> str:
        return " + ".join([*self.needed, *(f"{name} (optional)" for name in self.optional)])


KNOWN_COLUMNS = (
    Columns(format=DataFormat.MESSAGES, needed=("messages",)),
    Columns(format=DataFormat.MESSAGES, needed=("conversations",)),
    Columns(format=DataFormat.PROMPT_COMPLETION, needed=("prompt", "completion")),
    Columns(format=DataFormat.INSTRUCTION, needed=("instruction", "output"), optional=("input",)),
    Columns(format=DataFormat.INSTRUCTION, needed=("instruction", "response"), optional=("input",)),
    Columns(format=DataFormat.TEXT, needed=("text",)),
)
"""In order of preference: Alpaca's own data, for one, carries a ``text`` column beside its instructions."""


def columns_of(dataset: Dataset, known: tuple[Columns, ...] = KNOWN_COLUMNS) -> Columns:
    """Find the columns of ``dataset`` that are used, of the ``known`` ones.

    Raises:
        ValueError: the columns make up no known format.
    """
    for columns in known:
        if set(columns.needed) <= set(dataset.column_names):
            return columns
    raise ValueError(
        f"The data has the columns {', '.join(dataset.column_names) or '(none)'}, which make up no known format. "
        f"Understood are: {'; '.join(map(str, known))}. Rename the columns."
    )


def detect_format(dataset: Dataset) -> DataFormat:
    """Tell the format of ``dataset`` by its columns.

    Raises:
        ValueError: the columns make up no known format.
    """
    return columns_of(dataset).format


def numbered_batches(dataset: Dataset, columns: Columns) -> Iterator[list[tuple[int, Row]]]:
    """Yield the rows of ``dataset`` in batches, each row with its number (from 1) and the used columns only."""
    used = [name for name in columns.needed + columns.optional if name in dataset.column_names]
    number = 0
    for batch in dataset.select_columns(used).with_format(None).iter(batch_size=_BATCH):
        rows = [dict(zip(used, values, strict=True)) for values in zip(*(batch[name] for name in used), strict=True)]
        yield list(enumerate(rows, start=number + 1))
        number += len(rows)
