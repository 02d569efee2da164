"""The live line of work in steps: task, progress and time left."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

from loraprune.display.console import COLUMNS, fitting
from loraprune.record.numbers import clock, short_count

PLAIN_LINES = 10
"""Number of lines for one task without a terminal."""


class StepsProgress:
    """Shows the tasks of a run one after the other: a live line in a terminal, otherwise a few plain lines.

    Args:
        console: console to print to.
        quiet: print nothing.
        rates: also show steps per second.
    """

    def __init__(self, console: Console, *, quiet: bool = False, rates: bool = False) -> None:
        self._console = console
        self._quiet = quiet
        self._rates = rates
        self._live: Progress | None = None
        self._what = ""
        self._started = 0.0
        self._first = 0
        self._lines = -1

    def __enter__(self) -> StepsProgress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __call__(self, what: str, done: int, total: int) -> None:
        """Show that ``done`` of ``total`` steps of the task ``what`` are done."""
        now = time.monotonic()
        if what != self._what or done <= self._first:
            self.close()
            self._what, self._started, self._first, self._lines = what, now, done, -1
            self._open(what, total)
        steps, seconds = done - self._first, max(now - self._started, 1e-9)
        left = f"{clock(seconds / steps * (total - done))} left" if steps else ""
        if self._rates and steps:
            rate = steps / seconds
            left = f"{short_count(rate) if rate >= 10 else f'{rate:.2g}'}/s  {left}"
        if self._live is not None:
            self._live.update(self._task, completed=done, left=left)
        elif not self._quiet and done * PLAIN_LINES // total > self._lines:
            self._lines = done * PLAIN_LINES // total
            line = fitting([f"{what} {done}/{total}", left], COLUMNS)
            self._console.print(line, markup=False, highlight=False, soft_wrap=True)
        if done == total:
            self.close()
            self._what = ""

    def _open(self, what: str, total: int) -> None:
        if self._console.is_terminal and not self._quiet:
            self._live = Progress(
                TextColumn("{task.description} {task.completed:.0f}/{task.total:.0f}", markup=False),
                BarColumn(bar_width=16),
                TaskProgressColumn(),
                TextColumn("{task.fields[left]}", style="cyan"),
                console=self._console,
                transient=True,
            )
            self._task = self._live.add_task(what, total=total, left="")
            self._live.start()

    def close(self) -> None:
        """Remove the live line from the terminal."""
        if self._live is not None:
            self._live.stop()
            self._live = None
