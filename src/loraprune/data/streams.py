"""Rows that are read one after the other, as far as a run needs them: of data that is too large to be read whole."""

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
"""Rows whose columns are taken for those of the whole stream."""

_MIXED = Features({"source": Value("int32"), "row": Json()})
_Rows = Callable[[], Iterator[Mapping[str, Any]]]


class RowStream:
    """Rows of one source, or of several that follow each other or are mixed.

    Attributes:
        column_names: those of the first rows.
        read: rows that were read of each source, by its position, since the stream was begun last.
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
            ValueError: a row has something in a column that the first rows do not have.
        """
        self.read.clear()
        for number, (source, row) in enumerate(self._rows(), start=1):
            self.read[source] += 1
            for key, value in row.items():
                if key not in self.column_names and value is not None:
                    raise ValueError(
                        f"Row {number} of {self._name} has a column {key!r}, which the first {PEEKED:,} rows do not "
                        "have. Leave --streaming out, or give all rows the same columns."
                    )
            yield {key: row.get(key) for key in self.column_names}

    def first(self, count: int) -> Dataset:
        """The first rows as a dataset. Columns of labels keep the names of their classes."""
        rows = list(islice(self, count))
        found = table_of({name: [row[name] for row in rows] for name in self.column_names})
        for name, kind in self._classes.items():
            found = found.cast_column(name, kind)
        return found


@dataclass(frozen=True, kw_only=True)
class OpenSource:
    """One source that is read row by row.

    Attributes:
        source: that is read.
        rows: reads it from the beginning.
        columns: of its first rows.
        classes: names of the classes of each column of labels.
    """

    source: DataSource
    rows: _Rows
    columns: tuple[str, ...]
    classes: Mapping[str, ClassLabel]

    def renamed(self, names: Mapping[str, str]) -> OpenSource:
        """The same source with the names of :func:`~loraprune.data.renaming.new_names`."""
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
    """Find out how the rows of one source are read.

    Args:
        source: to read.
        split: of a data set that has several.
        name: configuration of one that has several.

    Raises:
        FileNotFoundError: the source does not exist.
        ValueError: its first rows cannot be read.
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
    """One stream of several sources: one after the other, or drawn by weight.

    Args:
        opened: the sources.
        seed: of the draws.
        stopping_strategy: as ``datasets.interleave_datasets`` takes it.
    """
    name = ", ".join(each.source.name for each in opened)
    columns = list(dict.fromkeys(column for each in opened for column in each.columns))
    if not columns:
        raise ValueError(f"{name} holds no rows. Give data with at least one.")
    classes = opened[0].classes
    if any(each.classes != classes for each in opened):
        raise ValueError(f"{name} do not go together: their labels have other classes. Leave one of them out.")
    if len(opened) == 1:
        return RowStream(lambda: ((0, row) for row in opened[0].rows()), columns, name, classes)
    # Rows as JSON values: sources need not have the same keys in each row, as tables must.
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
    """Weights as shares of 1."""
    numbers = [weight or 0.0 for weight in weights]
    return [number / sum(numbers) for number in numbers]


def _numbered(number: int, rows: _Rows) -> Iterator[dict[str, Any]]:
    for row in rows():
        yield {"source": number, "row": row}
