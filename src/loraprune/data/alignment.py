"""Concatenation of datasets whose columns differ in type or number."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import datasets
from datasets import Dataset, Features, Json, List, Value

from loraprune.data.files import as_json
from loraprune.data.formats import KNOWN_COLUMNS, Columns
from loraprune.data.pairs import PAIR_COLUMNS

logger = logging.getLogger("loraprune")

_WIDEST = {"string": "string", "large_string": "string"} | {
    f"{kind}{bits}": f"{kind}64" for kind in ("int", "float") for bits in (8, 16, 32, 64)
}


def concatenated(parts: Sequence[Dataset], names: Sequence[str], where: str, remedy: str) -> Dataset:
    """Concatenate datasets.

    If a part lacks an optional column of the format, the column is None in its rows. A column that the format does
    not read stays only if all parts have it with the same type.

    Args:
        parts: datasets, in order.
        names: names of the parts, for messages.
        where: subject of the messages, such as "The datasets".
        remedy: last sentence of the messages.

    Raises:
        ValueError: the parts have different formats, or a column has values of different types.
    """
    if len(parts) == 1:
        return parts[0]
    format = common_format([part.column_names for part in parts], names, where, remedy)
    common = set.intersection(*(set(part.column_names) for part in parts))
    used = common if format is None else {*format.needed, *format.optional}
    columns = dict.fromkeys(column for part in parts for column in part.column_names)
    kinds = {column: _common_kind(column, parts) for column in columns}
    for column, kind in kinds.items():
        if column in used and kind is None:
            raise ValueError(f"{where} cannot be combined: {_kinds_in_words(column, parts, names)}. {remedy}")
    kept = {column: kind for column, kind in kinds.items() if column in used | common and kind is not None}
    if len(kept) < len(kinds):
        lost = ", ".join(column for column in kinds if column not in kept)
        logger.warning("warning: dropped columns that not all sources have with the same type: %s", lost)
    return datasets.concatenate_datasets([_with_kinds(part, kept) for part in parts])


def common_format(columns: Sequence[Sequence[str]], names: Sequence[str], where: str, remedy: str) -> Columns | None:
    """Return the common format of several datasets, or None if it is no known text format (images, for example).

    Args:
        columns: column names of each dataset.
        names: as in :func:`concatenated`.
        where: as in :func:`concatenated`.
        remedy: as in :func:`concatenated`.

    Raises:
        ValueError: the formats differ.
    """
    first, found = columns[0], _format_of(columns[0])
    for other, name in zip(columns[1:], names[1:], strict=True):
        if _format_of(other) != found or not set(other) & set(first):
            raise ValueError(
                f"{where} cannot be combined: {names[0]} has the columns {', '.join(first)}, {name} has "
                f"{', '.join(other)}. {remedy}"
            )
    return found


def _format_of(columns: Sequence[str]) -> Columns | None:
    """The first known format whose columns are all there."""
    known = (*KNOWN_COLUMNS, *PAIR_COLUMNS)
    return next((format for format in known if set(format.needed) <= set(columns)), None)


def _common_kind(column: str, parts: Sequence[Dataset]) -> Any:
    """The feature type that fits a column in all parts; None if there is none."""
    found = [part.features[column] for part in parts if column in part.column_names]
    filled = [kind for kind in found if kind != Value("null")] or found
    if all(kind == filled[0] for kind in filled):
        return filled[0]
    if all(isinstance(kind, (Json, List, dict)) for kind in filled):
        return Json()  # for example, conversation turns with different keys
    widest = {_WIDEST.get(kind.dtype) if isinstance(kind, Value) else None for kind in filled}
    only = widest.pop()
    return None if widest or only is None else Value(only)


def _kinds_in_words(column: str, parts: Sequence[Dataset], names: Sequence[str]) -> str:
    """Name two parts whose values in a column have different types."""
    pairs = [(name, part.features[column]) for part, name in zip(parts, names, strict=True) if column in part.features]
    words = [(name, kind.dtype if isinstance(kind, Value) else type(kind).__name__.lower()) for name, kind in pairs]
    (first, kind_of_first), *others = words
    other, kind_of_other = next((pair for pair in others if pair[1] != kind_of_first), others[0])
    return f"the column {column!r} has the type {kind_of_first} in {first} and {kind_of_other} in {other}"


def _with_kinds(part: Dataset, kinds: dict[str, Any]) -> Dataset:
    part = part.select_columns([column for column in part.column_names if column in kinds])
    for column in part.column_names:
        kind = kinds[column]
        if part.features[column] in (kind, Value("null")):
            continue
        if kind == Json():  # a cast would turn nested JSON into text
            values = as_json(part.select_columns([column]).with_format(None)[:][column])
            own = Dataset.from_dict({column: values}, features=Features({column: kind}))
            part = datasets.concatenate_datasets([part.remove_columns(column), own], axis=1)
        else:
            part = part.cast_column(column, kind)
    return part
