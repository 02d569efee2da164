"""A picture of a page with its title, caption and numbers, and the plain tables that go with it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

FULL_WIDTH = 1040.0
HALF_WIDTH = 504.0
NARROW_WIDTH = 352.0

KEPT_AND_REMOVED = (("kept", "kept"), ("removed", "removed"))


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One picture in two sizes, for labels do not scale with the screen.

    Attributes:
        title: what it shows.
        caption: what to read from it.
        legend: pairs of style class and name.
        wide: SVG for wide screens; ``narrow``: for phones.
        full: whether it takes the full width of the page.
        numbers: what it shows as a table, where that says more.
    """

    title: str
    caption: str = ""
    legend: tuple[tuple[str, str], ...] = ()
    wide: str
    narrow: str
    full: bool = False
    numbers: Grid | None = None


def full(title: str, draw: Callable[[float], str], caption: str = "", numbers: Grid | None = None) -> Figure:
    """A picture over the whole width of the page; ``draw`` takes the width that it is to have."""
    wide, narrow = draw(FULL_WIDTH), draw(NARROW_WIDTH)
    return Figure(title=title, caption=caption, wide=wide, narrow=narrow, full=True, numbers=numbers)


def half(
    title: str,
    draw: Callable[[float], str],
    caption: str = "",
    legend: tuple[tuple[str, str], ...] = (),
    numbers: Grid | None = None,
) -> Figure:
    """A picture over half of the page; ``draw`` takes the width that it is to have."""
    wide, narrow = draw(HALF_WIDTH), draw(NARROW_WIDTH)
    return Figure(title=title, caption=caption, legend=legend, wide=wide, narrow=narrow, numbers=numbers)


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
