"""Labeled facts as lines of at most 80 columns."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator

from loraprune.display.console import COLUMNS
from loraprune.display.terminal import one_line

_INDENT = 2
_LABEL = 10


def fact_lines(title: str, facts: Iterable[tuple[str, str]]) -> Iterator[str]:
    """Yield the lines of a block: the title, then each fact after its label. Long facts wrap with an indent.

    Args:
        title: first line.
        facts: labels of at most ten characters, with texts; a fact without text is left out.
    """
    yield from textwrap.wrap(
        one_line(title), COLUMNS, subsequent_indent=" " * _INDENT, break_on_hyphens=False, break_long_words=False
    )
    for label, text in facts:
        if text:
            yield from textwrap.wrap(
                one_line(text),
                COLUMNS,
                initial_indent=f"{'':{_INDENT}}{label:{_LABEL}} ",
                subsequent_indent=" " * (_INDENT + _LABEL + 1),
                break_on_hyphens=False,
                break_long_words=False,
            )
