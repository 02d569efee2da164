"""A figure of a page with its title, caption and numbers, and plain tables."""

from __future__ import annotations

from dataclasses import dataclass

FULL_WIDTH = 860.0
HALF_WIDTH = 420.0
"""Width in pixels that figures are drawn for; the style sheet scales them to the screen."""

KEPT_AND_REMOVED = (("kept", "kept"), ("removed", "removed"))


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One figure.

    Attributes:
        title: title.
        markup: SVG.
        caption: explanation for the reader.
        legend: pairs of style class and name.
        full: whether it uses the full width of the page.
        numbers: its values as a table, if that adds information.
    """

    title: str
    markup: str
    caption: str = ""
    legend: tuple[tuple[str, str], ...] = ()
    full: bool = False
    numbers: Grid | None = None


NONZERO_WEIGHTS = "weights_that_are_not_zero"
"""Kind of the widths of a sparse model: its layers have weights, of which some are zero."""


def kind_in_words(kind: str) -> str:
    """Name of a kind of dimension for readers: ``KV heads``, ``expert channels``."""
    return "KV heads" if kind == "heads" else kind.replace("_", " ")


def capitalized(text: str) -> str:
    """Capitalize the first letter and keep the rest."""
    return text[:1].upper() + text[1:]


# Plain tables of a page.


@dataclass(frozen=True, kw_only=True)
class Grid:
    """A plain table: column headings and the cells of every row."""

    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
