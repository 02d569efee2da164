"""The rows of a run, of one source or of several: all of them in order, or a mixture by weight."""

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

_WHERE = "The data sets"
_REMEDY = "Rename columns with --columns, or leave one source out."


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How data is read.

    Attributes:
        split: of data sets that have several.
        name: configuration of those that have several and are not given with one.
        columns: new names of columns (:mod:`loraprune.data.renaming`).
        may_be_renamed: whether columns may have their new names already, as those of held-out data may.
        streaming: read only as many rows as are asked for.
        stopping_strategy: of a mixture: ``first_exhausted`` ends it with the first source that has no rows left,
            ``all_exhausted`` with the last one, and repeats the rows of the others until then.
        seed: of a mixture.
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
        rows: all of them, or a stream.
        sources: where they come from.
        available: rows of each source; None of a stream.
        used: rows of each source that are in ``rows``; a stream counts them while it is read.
    """

    rows: Dataset | RowStream
    sources: tuple[DataSource, ...]
    available: tuple[int, ...] | None = None
    used: tuple[int, ...] | None = None

    def facts(self) -> list[dict[str, Any]]:
        """What was used of each source, for the record."""
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
    """Read what was given as data: a name or a data set, or a list of them.

    Raises:
        FileNotFoundError: a source does not exist.
        ValueError: a source cannot be read, or sources do not go together.
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
    """The new names of each source's columns. One source at least has to have a column that is renamed."""
    wanted = renames(reading.columns)
    optional = set(wanted.values()) if reading.may_be_renamed else {name for of_one in columns for name in of_one}
    return [new_names(of_one, wanted, name, optional) for of_one, name in zip(columns, names, strict=True)]


def _loaded(source: DataSource, reading: Reading) -> Dataset:
    if source.is_file:  # which has neither splits nor configurations
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
