"""Streams of rows: data too large to read whole is read row by row, as far as a run needs it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from typing import Any

import datasets
from datasets import ClassLabel, Dataset, Features, IterableDataset, Json, Value

from loraprune.data.files import file_rows, table_of
from loraprune.data.named import DataSource
from loraprune.data.renaming import renamed_row
from loraprune.data.sources import is_published, load_source, open_published, source_files

PEEKED = 1000
"""Number of first rows that define the columns of a stream."""

_MIXED = Features({"source": Value("int32"), "row": Json()})
_Rows = Callable[[], Iterator[Mapping[str, Any]]]


class RowStream:
    """Rows of one source, or of several sources in sequence or mixed.

    Attributes:
        column_names: columns of the first rows.
        read: number of rows read from each source, by position, since the last start of the stream.
    """

    def __init__(
        self,
        rows: Callable[[], Iterator[tuple[int, Mapping[str, Any]]]],
        columns: list[str],
        name: str,
        classes: Mapping[str, ClassLabel],
    ) -> None:
        self._rows, self._name, self._classes = rows, name, classes
        self.column_names = columns
        self.read: Counter[int] = Counter()

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Read from the beginning.

        Raises:
            ValueError: a row has a value in a column that the first rows do not have.
        """
        self.read.clear()
        for number, (source, row) in enumerate(self._rows(), start=1):
            self.read[source] += 1
            for key, value in row.items():
                if key not in self.column_names and value is not None:
                    raise ValueError(
                        f"Row {number} of {self._name} has a column {key!r}, which the first {PEEKED:,} rows do not "
                        "have. Leave out --streaming, or give all rows the same columns."
                    )
            yield {key: row.get(key) for key in self.column_names}

    def first(self, count: int) -> Dataset:
        """Return the first rows as a dataset. Label columns keep the names of their classes."""
        rows = list(islice(self, count))
        found = table_of({name: [row[name] for row in rows] for name in self.column_names})
        for name, kind in self._classes.items():
            found = found.cast_column(name, kind)
        return found


@dataclass(frozen=True, kw_only=True)
class OpenSource:
    """A source that is read row by row.

    Attributes:
        source: the source.
        rows: function that reads the rows from the beginning.
        columns: columns of the first rows.
        classes: class names of each label column.
    """

    source: DataSource
    rows: _Rows
    columns: tuple[str, ...]
    classes: Mapping[str, ClassLabel]

    def renamed(self, names: Mapping[str, str]) -> OpenSource:
        """Return the same source with the column names of :func:`~loraprune.data.renaming.new_names`."""
        if all(old == new for old, new in names.items()):
            return self
        rows = self.rows
        return OpenSource(
            source=self.source,
            rows=lambda: (renamed_row(row, names) for row in rows()),
            columns=tuple(names.values()),
            classes={names[name]: kind for name, kind in self.classes.items() if name in names},
        )


def open_source(source: DataSource, *, split: str, name: str | None) -> OpenSource:
    """Open one source and read the columns of its first rows.

    Args:
        source: source to open.
        split: split of a dataset that has several.
        name: configuration of a dataset that has several.

    Raises:
        FileNotFoundError: the source does not exist.
        ValueError: the first rows cannot be read.
    """
    rows: _Rows
    loaded: Any = None
    if is_published(source, source.config or name):
        loaded = open_published(source, split, source.config or name, streaming=True)
    elif (files := source_files(source, split)) is not None:
        rows = partial(_of_files, files)
    else:
        loaded = load_source(source, split=split, name=name).with_format(None)
    if loaded is not None:
        rows = partial(iter, loaded)
    features = {} if loaded is None else loaded.features or {}
    classes = {column: kind for column, kind in features.items() if isinstance(kind, ClassLabel)}
    return OpenSource(source=source, rows=rows, columns=tuple(_columns(islice(rows(), PEEKED))), classes=classes)


def _columns(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(key for row in rows for key in row))


def _of_files(files: Sequence[Any]) -> Iterator[dict[str, Any]]:
    return chain.from_iterable(map(file_rows, files))


def stream_of(opened: Sequence[OpenSource], *, seed: int, stopping_strategy: str) -> RowStream:
    """Make one stream of several sources: in sequence, or drawn by weight.

    Args:
        opened: sources.
        seed: seed of the draws.
        stopping_strategy: strategy of ``datasets.interleave_datasets``.

    Raises:
        ValueError: there are no rows, or the label columns of the sources have different classes.
    """
    name = ", ".join(each.source.name for each in opened)
    columns = list(dict.fromkeys(column for each in opened for column in each.columns))
    if not columns:
        raise ValueError(f"{name} holds no rows. Give data with at least one.")
    classes = opened[0].classes
    if any(each.classes != classes for each in opened):
        raise ValueError(f"{name} cannot be combined: their labels have different classes. Leave one of them out.")
    if len(opened) == 1:
        return RowStream(lambda: ((0, row) for row in opened[0].rows()), columns, name, classes)
    # As JSON values, rows of different sources need not have the same keys.
    streams = [
        IterableDataset.from_generator(partial(_numbered, number, each.rows), features=_MIXED)
        for number, each in enumerate(opened)
    ]
    weights = [each.source.weight for each in opened]
    if None in weights:
        mixed = datasets.concatenate_datasets(streams)
    else:
        mixed = datasets.interleave_datasets(
            streams, probabilities=shares(weights), seed=seed, stopping_strategy=stopping_strategy
        )
    return RowStream(lambda: ((item["source"], item["row"]) for item in mixed), columns, name, classes)


def shares(weights: Sequence[float | None]) -> list[float]:
    """Return the weights as shares of 1."""
    numbers = [weight or 0.0 for weight in weights]
    return [number / sum(numbers) for number in numbers]


def _numbered(number: int, rows: _Rows) -> Iterator[dict[str, Any]]:
    for row in rows():
        yield {"source": number, "row": row}
