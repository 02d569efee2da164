"""The rows of a run from one or several sources: all of them in order, or a mixture by weight."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
from datasets import Dataset

from loraprune.data.alignment import common_format, concatenated
from loraprune.data.named import DataSource, find_sources, is_stream
from loraprune.data.renaming import new_names, renamed, renames
from loraprune.data.sources import load_source
from loraprune.data.streams import RowStream, open_source, shares, stream_of

_WHERE = "The datasets"
_REMEDY = "Rename columns with --columns, or leave one source out."


@dataclass(frozen=True, kw_only=True)
class Reading:
    """Options for reading data.

    Attributes:
        split: split of datasets that have several.
        name: configuration of datasets that have several, if the source does not name one.
        columns: new names of columns (:mod:`loraprune.data.renaming`).
        may_be_renamed: whether columns may already have their new names, as in held-out data.
        streaming: whether to read only the rows that are needed.
        stopping_strategy: end of a mixture. ``first_exhausted``: when the first source has no rows left;
            ``all_exhausted``: when every source was read once, with rows of shorter sources repeated.
        seed: seed of a mixture.
    """

    split: str = "train"
    name: str | None = None
    columns: str | None = None
    may_be_renamed: bool = False
    streaming: bool = False
    stopping_strategy: str = "first_exhausted"
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class RawRows:
    """Rows as they are in the data.

    Attributes:
        rows: dataset or stream of the rows.
        sources: sources of the rows.
        available: number of rows of each source; None for a stream.
        used: number of rows of each source in ``rows``; None for a stream, which counts while it is read.
    """

    rows: Dataset | RowStream
    sources: tuple[DataSource, ...]
    available: tuple[int, ...] | None = None
    used: tuple[int, ...] | None = None

    def facts(self) -> list[dict[str, Any]]:
        """Return the number of rows used from each source, for the record."""
        found = []
        for number, source in enumerate(self.sources):
            values = {"source": source.name, "weight": source.weight}
            if self.available is not None and self.used is not None:
                values |= {"rows": self.available[number], "used": self.used[number]}
            elif isinstance(self.rows, RowStream):
                values |= {"used": self.rows.read[number]}
            found.append({key: value for key, value in values.items() if value is not None})
        return found


def read_data(given: Any, reading: Reading) -> RawRows:
    """Read data given as a name, a dataset, or a list of these.

    Raises:
        FileNotFoundError: a source does not exist.
        ValueError: a source cannot be read, or the sources cannot be combined.
    """
    sources = find_sources(given)
    names = [source.name for source in sources]
    if reading.streaming or any(is_stream(source.loaded) for source in sources):
        opened = [open_source(source, split=reading.split, name=reading.name) for source in sources]
        renaming = _renaming([each.columns for each in opened], names, reading)
        opened = [each.renamed(columns) for each, columns in zip(opened, renaming, strict=True)]
        common_format([each.columns for each in opened], names, _WHERE, _REMEDY)
        rows = stream_of(opened, seed=reading.seed, stopping_strategy=reading.stopping_strategy)
        return RawRows(rows=rows, sources=sources)
    parts = [_loaded(source, reading) for source in sources]
    renaming = _renaming([part.column_names for part in parts], names, reading)
    parts = [renamed(part, columns) for part, columns in zip(parts, renaming, strict=True)]
    together = concatenated(parts, names, _WHERE, _REMEDY)
    available = tuple(len(part) for part in parts)
    if len(sources) == 1 or sources[0].weight is None:
        return RawRows(rows=together, sources=sources, available=available, used=available)
    order = _order(sources, available, reading)
    owners = np.searchsorted(np.cumsum(available), order, side="right")
    used = tuple(int(count) for count in np.bincount(owners, minlength=len(sources)))
    return RawRows(rows=together.select(order), sources=sources, available=available, used=used)


def _renaming(columns: Sequence[Sequence[str]], names: Sequence[str], reading: Reading) -> list[dict[str, str]]:
    """The new names of each source's columns. At least one source must have each column that is renamed."""
    wanted = renames(reading.columns)
    optional = set(wanted.values()) if reading.may_be_renamed else {name for of_one in columns for name in of_one}
    return [new_names(of_one, wanted, name, optional) for of_one, name in zip(columns, names, strict=True)]


def _loaded(source: DataSource, reading: Reading) -> Dataset:
    if source.is_file:  # files have neither splits nor configurations
        return load_source(source)
    return load_source(source, split=reading.split, name=reading.name)


def _order(sources: Sequence[DataSource], available: Sequence[int], reading: Reading) -> list[int]:
    """Positions of a mixture's rows among the rows of all sources."""
    starts = np.cumsum([0, *available[:-1]])
    positions = [
        Dataset.from_dict({"position": range(start, start + count)})
        for start, count in zip(starts.tolist(), available, strict=True)
    ]
    order: list[int] = datasets.interleave_datasets(
        positions,
        probabilities=shares([source.weight for source in sources]),
        seed=reading.seed,
        stopping_strategy=reading.stopping_strategy,
    )["position"][:]
    return order
