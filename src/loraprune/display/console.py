"""The console that messages and progress go to, and log records as lines on it."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from loraprune.display.terminal import clean, one_line

COLUMNS = 80
"""Columns that lines fit where there is no terminal."""


class CleanConsole(Console):
    """A console whose texts are no markup, and of which nothing but its own styles controls the terminal."""

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """As the parent does, with each text clean."""
        for text, style, control in super().render(renderable, options):
            yield Segment(text if control else clean(text), style, control)


class ConsoleHandler(logging.Handler):
    """Prints log records as plain lines, above a live display if there is one.

    Attributes:
        console: that it prints to.
    """

    def __init__(self, console: Console) -> None:
        super().__init__()
        self.console = console

    def emit(self, record: logging.LogRecord) -> None:
        """Print a record."""
        style = "yellow" if record.levelno >= logging.WARNING else "dim"
        print_line(self.console, record.getMessage(), style)


def print_line(console: Console, text: object, style: str | None = None) -> None:
    """Print a text in one line: nothing in it is markup, and a terminal alone breaks it."""
    console.print(one_line(str(text)), style=style, markup=False, highlight=False, soft_wrap=True)


def fitting(parts: Sequence[str], width: int) -> str:
    """Join as many parts as fit a width, two spaces apart.

    Args:
        parts: the most important first; the line shows them in this order.
        width: columns.
    """
    line = ""
    for part in filter(None, parts):
        longer = f"{line}  {part}" if line else part
        if len(longer) <= width:
            line = longer
    return line
