"""A picture of a page with its title, caption and numbers, and the plain tables that go with it."""

from __future__ import annotations

from dataclasses import dataclass

FULL_WIDTH = 860.0
HALF_WIDTH = 420.0
"""Pixels that pictures are drawn for; the style sheet scales them to the screen."""

KEPT_AND_REMOVED = (("kept", "kept"), ("removed", "removed"))


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One picture.

    Attributes:
        title: what it shows.
        markup: SVG.
        caption: what to read from it.
        legend: pairs of style class and name.
        full: whether it takes the full width of the page.
        numbers: what it shows as a table, where that says more.
    """

    title: str
    markup: str
    caption: str = ""
    legend: tuple[tuple[str, str], ...] = ()
    full: bool = False
    numbers: Grid | None = None


def kind_in_words(kind: str) -> str:
    """A kind of dimension as a reader expects it: ``expert channels``."""
    return kind.replace("_", " ")


def capitalized(text: str) -> str:
    """A text with a capital letter at its beginning, the rest as it is."""
    return text[:1].upper() + text[1:]


# Plain tables of a page.


@dataclass(frozen=True, kw_only=True)
class Grid:
    """A plain table: heads of the columns and the cells of every row."""

    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
