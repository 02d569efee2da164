"""Data sets with the same columns, so that the rows of one can follow those of another."""

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
    """The rows of one data set after those of the other.

    Columns that the format may lack are None where a part lacks them. Columns that the format does not read are left
    out unless all parts have them alike.

    Args:
        parts: in order.
        names: of the parts, for messages.
        where: what does not go together, as the subject of a message.
        remedy: last sentence of a message.

    Raises:
        ValueError: the columns of the parts make up different formats, or hold values of different kinds.
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
            raise ValueError(f"{where} do not go together: {_kinds_in_words(column, parts, names)}. {remedy}")
    kept = {column: kind for column, kind in kinds.items() if column in used | common and kind is not None}
    if len(kept) < len(kinds):
        lost = ", ".join(column for column in kinds if column not in kept)
        logger.warning("warning: columns left out, since not all sources have them alike: %s", lost)
    return datasets.concatenate_datasets([_with_kinds(part, kept) for part in parts])


def common_format(columns: Sequence[Sequence[str]], names: Sequence[str], where: str, remedy: str) -> Columns | None:
    """The format of several data sets, told by their columns; None where it is none that is known, as of images.

    Raises:
        ValueError: the formats differ; the other arguments are those of :func:`concatenated`.
    """
    first, found = columns[0], _format_of(columns[0])
    for other, name in zip(columns[1:], names[1:], strict=True):
        if _format_of(other) != found or not set(other) & set(first):
            raise ValueError(
                f"{where} do not go together: {names[0]} has the columns {', '.join(first)}, {name} has "
                f"{', '.join(other)}. {remedy}"
            )
    return found


def _format_of(columns: Sequence[str]) -> Columns | None:
    """The format that columns make up first."""
    known = (*KNOWN_COLUMNS, *PAIR_COLUMNS)
    return next((format for format in known if set(format.needed) <= set(columns)), None)


def _common_kind(column: str, parts: Sequence[Dataset]) -> Any:
    """The feature that a column gets in all parts that have it; None where there is none."""
    found = [part.features[column] for part in parts if column in part.column_names]
    filled = [kind for kind in found if kind != Value("null")] or found
    if all(kind == filled[0] for kind in filled):
        return filled[0]
    if all(isinstance(kind, (Json, List, dict)) for kind in filled):
        return Json()  # turns of a conversation with other keys, say
    widest = {_WIDEST.get(kind.dtype) if isinstance(kind, Value) else None for kind in filled}
    only = widest.pop()
    return None if widest or only is None else Value(only)


def _kinds_in_words(column: str, parts: Sequence[Dataset], names: Sequence[str]) -> str:
    """Two parts that have values of different kinds."""
    pairs = [(name, part.features[column]) for part, name in zip(parts, names, strict=True) if column in part.features]
    words = [(name, kind.dtype if isinstance(kind, Value) else type(kind).__name__.lower()) for name, kind in pairs]
    (first, kind_of_first), *others = words
    other, kind_of_other = next((pair for pair in others if pair[1] != kind_of_first), others[0])
    return f"the column {column!r} holds values of kind {kind_of_first} in {first} and {kind_of_other} in {other}"


def _with_kinds(part: Dataset, kinds: dict[str, Any]) -> Dataset:
    part = part.select_columns([column for column in part.column_names if column in kinds])
    for column in part.column_names:
        kind = kinds[column]
        if part.features[column] in (kind, Value("null")):
            continue
        if kind == Json():  # a cast would take JSON within the values for text
            values = as_json(part.select_columns([column]).with_format(None)[:][column])
            own = Dataset.from_dict({column: values}, features=Features({column: kind}))
            part = datasets.concatenate_datasets([part.remove_columns(column), own], axis=1)
        else:
            part = part.cast_column(column, kind)
    return part
