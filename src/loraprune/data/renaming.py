"""Columns renamed to the names of a format: ``prompt=question,completion=answer``."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datasets import Dataset

_EXAMPLE = "Write prompt=question,completion=answer: the format's name of the column, then the data's name of it."


def renames(given: str | None) -> dict[str, str]:
    """Parse renames: return the data's column for each column of the format.

    Raises:
        ValueError: ``given`` does not consist of pairs, or names a column twice.
    """
    found: dict[str, str] = {}
    for pair in (given or "").split(","):
        ours, equals, theirs = (part.strip() for part in pair.partition("="))
        if not pair.strip() and not given:
            continue
        if not (ours and equals and theirs) or "=" in theirs:
            raise ValueError(f"columns is {given!r}, but {pair!r} is not a pair of names. {_EXAMPLE}")
        if ours in found or theirs in found.values():
            twice = ours if ours in found else theirs
            raise ValueError(f"columns is {given!r}, which names the column {twice!r} twice. {_EXAMPLE}")
        found[ours] = theirs
    return found


def new_names(
    columns: Iterable[str], wanted: Mapping[str, str], source: str, optional: Container[str] = ()
) -> dict[str, str]:
    """Return the columns that stay, each with its new name.

    A column that already has the new name is dropped.

    Args:
        columns: columns of the source.
        wanted: renames as :func:`renames` returns them.
        source: name of the source, for the message.
        optional: columns that may be missing if the source has a column with the new name.

    Raises:
        ValueError: the source does not have a column to rename.
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
    """Return a dataset with the names of :func:`new_names`."""
    if all(old == new for old, new in names.items()):
        return dataset
    kept = dataset.select_columns(list(names))
    return kept.rename_columns({old: new for old, new in names.items() if old != new})


def renamed_row(row: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """Return a row with the names of :func:`new_names`; columns that these do not name stay."""
    gone = set(names.values()) - names.keys()
    return {names.get(key, key): value for key, value in row.items() if key in names or key not in gone}
