"""Plain tables of a page."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Grid:
    """A plain table: heads of the columns and the cells of every row."""

    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
