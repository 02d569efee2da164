"""What a running benchmark shows: the thing that is timed, how far it is, and the time left for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

if TYPE_CHECKING:
    from rich.console import Console


class BenchProgress:
    """A live line in a terminal, else one plain line for each thing that is timed."""

    def __init__(self, console: Console, *, quiet: bool) -> None:
        self._console, self._quiet = console, quiet
        self._live: Progress | None = None
        if console.is_terminal and not quiet:
            self._live = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                console=console,
                transient=True,
            )
            self._task = self._live.add_task("loading", total=None)
            self._live.start()

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Take in that ``done`` of ``total`` calls of a stage are over."""
        if self._live is not None:
            if done == 0:
                self._live.reset(self._task, description=stage, total=total)
            self._live.update(self._task, completed=done)
        elif done == 0 and not self._quiet:
            self._console.print(f"{stage} ({total} calls)", markup=False, highlight=False)

    def close(self) -> None:
        """Give the terminal back, also after an error."""
        if self._live is not None:
            self._live.stop()
            self._live = None
