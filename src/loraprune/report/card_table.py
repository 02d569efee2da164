"""The table of a model card, brought up to date."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from loraprune.tasks.measures import CARD_FORMATS

if TYPE_CHECKING:
    from loraprune.record.report_data import Row

HEAD = re.compile(r"^\| +\|.*\|\n\|(?:-+\|)+\n", re.MULTILINE)
UNKNOWN = "–"


def with_rows(card: str, rows: Sequence[Row]) -> str:
    """A card whose table holds rows; one with the same name gives way.

    Args:
        card: text of a card that a run wrote.
        rows: to put in, in their order.

    Raises:
        ValueError: the card has no table of measures.
    """
    head = HEAD.search(card)
    if head is None:
        raise ValueError("it holds no table of measures")
    lines = card[head.end() :].splitlines(keepends=True)
    count = next((place for place, line in enumerate(lines) if not line.startswith("|")), len(lines))
    new = {_name(line): line for line in map(_line, rows)}
    old = [line for line in lines[:count] if _name(line) not in new]
    return card[: head.end()] + "".join([*old, *new.values(), *lines[count:]])


def _name(line: str) -> str:
    """The first cell without what stands in parentheses behind it: how much was measured may have changed."""
    return line.split("|")[1].partition("(")[0].strip()


def _line(row: Row) -> str:
    form = CARD_FORMATS[row.unit]
    dense, pruned = (UNKNOWN if value is None else f"{value:{form}}" for value in (row.dense, row.pruned))
    detail = f" ({row.detail})" if row.detail else ""
    return f"| {row.label}{detail} | {dense} | {pruned} |\n"
