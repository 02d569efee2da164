"""The console for messages and progress, and a handler that prints log records on it."""

from __future__ import annotations

import logging
import re
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from loraprune.display.terminal import clean, one_line

COLUMNS = 80
"""Width of lines without a terminal."""

_COMMAND = re.compile(r"(?<=: )loraprune (?:(?!\. ).)*$")
"""Command at the end of a message, to copy."""


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


def print_line(
    console: Console, text: object, style: str | None = None, *, indent: int = 0, whole: bool = False
) -> None:
    """Print a text without markup: one line, which a terminal shows broken between words.

    Args:
        console: console to print to.
        text: text; line breaks in it become spaces.
        style: style of the text.
        indent: columns before the second line and those after it.
        whole: never break the line, so that a path in it can be copied.
    """
    line = one_line(str(text))
    if console.is_terminal and not whole:
        line = broken(line, console.width, indent)
    console.print(line, style=style, markup=False, highlight=False, soft_wrap=True)


def broken(line: str, width: int, indent: int = 0) -> str:
    """Break a line between words; long words, such as paths, and a command at the end stay whole."""
    command = _COMMAND.search(line)
    words, copied = (line[: command.start()], command[0]) if command else (line, "")
    lines = textwrap.wrap(
        words, width, subsequent_indent=" " * indent, break_long_words=False, break_on_hyphens=False
    ) or [""]
    if copied and len(lines[-1]) + 1 + len(copied) > width:
        lines.append(copied)
    elif copied:
        lines[-1] += f" {copied}"
    return "\n".join(lines)


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
