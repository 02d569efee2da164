"""Columns of the data under the names that formats have: ``prompt=question,completion=answer``."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datasets import Dataset

_EXAMPLE = "Write prompt=question,completion=answer: what a format calls the column, then what the data calls it."


def renames(given: str | None) -> dict[str, str]:
    """The columns of formats, each with the column of the data that becomes it.

    Raises:
        ValueError: it is not written as pairs, or a column is named twice.
    """
    found: dict[str, str] = {}
    for pair in (given or "").split(","):
        ours, equals, theirs = (part.strip() for part in pair.partition("="))
        if not pair.strip() and not given:
            continue
        if not (ours and equals and theirs) or "=" in theirs:
            raise ValueError(f"columns is {given!r}, of which {pair!r} is no pair of names. {_EXAMPLE}")
        if ours in found or theirs in found.values():
            twice = ours if ours in found else theirs
            raise ValueError(f"columns is {given!r}, which names the column {twice!r} twice. {_EXAMPLE}")
        found[ours] = theirs
    return found


def new_names(
    columns: Iterable[str], wanted: Mapping[str, str], source: str, optional: Container[str] = ()
) -> dict[str, str]:
    """The columns that stay, each with its new name.

    A column that has the new name already gives way.

    Args:
        columns: of the source.
        wanted: as :func:`renames` gives them.
        source: its name, for the message.
        optional: columns that may be missing where there is one of the new name.

    Raises:
        ValueError: there is no such column.
    """
    columns = list(columns)
    found = {name: name for name in columns}
    for ours, theirs in wanted.items():
        if theirs in columns:
            if ours in found and ours not in wanted.values():
                del found[ours]
            found[theirs] = ours
        elif ours not in columns or theirs not in optional:
            raise ValueError(
                f"{source} has no column {theirs!r} (--columns {ours}={theirs}). Its columns are "
                f"{', '.join(columns) or '(none)'}. {_EXAMPLE}"
            )
    return found


def renamed(dataset: Dataset, names: Mapping[str, str]) -> Dataset:
    """A data set with the names of :func:`new_names`."""
    if all(old == new for old, new in names.items()):
        return dataset
    kept = dataset.select_columns(list(names))
    return kept.rename_columns({old: new for old, new in names.items() if old != new})


def renamed_row(row: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """A row with the names of :func:`new_names`; what they do not name stays."""
    gone = set(names.values()) - names.keys()
    return {names.get(key, key): value for key, value in row.items() if key in names or key not in gone}
