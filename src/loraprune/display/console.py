"""The console for messages and progress, and a handler that prints log records on it."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from loraprune.display.terminal import clean, one_line

COLUMNS = 80
"""Width of lines without a terminal."""


class CleanConsole(Console):
    """A console without markup that removes control characters from texts."""

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Render as the parent class does, with clean texts."""
        for text, style, control in super().render(renderable, options):
            yield Segment(text if control else clean(text), style, control)


class ConsoleHandler(logging.Handler):
    """Prints log records as plain lines, above a live display if there is one.

    Attributes:
        console: console to print to.
    """

    def __init__(self, console: Console) -> None:
        super().__init__()
        self.console = console

    def emit(self, record: logging.LogRecord) -> None:
        """Print a record."""
        style = "yellow" if record.levelno >= logging.WARNING else "dim"
        print_line(self.console, record.getMessage(), style)


def print_line(console: Console, text: object, style: str | None = None) -> None:
    """Print a text as one line, without markup and without wrapping."""
    console.print(one_line(str(text)), style=style, markup=False, highlight=False, soft_wrap=True)


def fitting(parts: Sequence[str], width: int) -> str:
    """Join the parts that fit a width, two spaces apart.

    Args:
        parts: parts in order, the most important first.
        width: width in columns.
    """
    line = ""
    for part in filter(None, parts):
        longer = f"{line}  {part}" if line else part
        if len(longer) <= width:
            line = longer
    return line
