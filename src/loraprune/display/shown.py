"""What of a run is shown: all of its progress, warnings alone, or nothing."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console

from loraprune.display.console import CleanConsole, ConsoleHandler, print_line
from loraprune.display.facts import fact_lines
from loraprune.display.steps import StepsProgress
from loraprune.options.field import check_choice
from loraprune.processes.ranks import is_main

if TYPE_CHECKING:
    from loraprune.display.time_left import StepWork
    from loraprune.display.training import TrainingProgress
    from loraprune.pruning.callback import PruningCallback

VERBOSITIES = ("progress", "warnings", "silent")
"""Values of ``verbosity``, the one that shows most first."""

logger = logging.getLogger("loraprune")


class RunDisplay:
    """Shows a run on a console, or nothing of it.

    Args:
        console: to print to.
        quiet: show no progress.

    Attributes:
        steps: shows work in steps; a :data:`~loraprune.calibration.progress.ProgressOf`.
        quiet: whether no progress is shown.
    """

    def __init__(self, console: Console, *, quiet: bool) -> None:
        self._console = console
        self.quiet = quiet
        self.steps = StepsProgress(console, quiet=quiet)
        self._training: TrainingProgress | None = None

    def facts(self, title: str, facts: Iterable[tuple[str, str]], *, asked: bool = False) -> None:
        """Show a block of facts.

        Args:
            title: first line.
            facts: labels and texts.
            asked: whether the block is the result that was asked for; it then goes to standard output.
        """
        console = CleanConsole(file=sys.stdout, quiet=not is_main()) if asked else self._console
        for line in fact_lines(title, facts):
            print_line(console, line)

    def training(
        self, pruning: PruningCallback, *, work: StepWork | None = None, eval_steps: int = 0
    ) -> TrainingProgress:
        """The callback that shows training; see :class:`~loraprune.display.training.TrainingProgress`."""
        from loraprune.display.training import TrainingProgress

        self._training = TrainingProgress(
            self._console, quiet=self.quiet, pruning=pruning, work=work, eval_steps=eval_steps
        )
        return self._training

    def close(self) -> None:
        """Give the terminal back."""
        self.steps.close()
        if self._training is not None:
            self._training.close()


@contextmanager
def run_display(verbosity: str) -> Iterator[RunDisplay]:
    """The display of a run; logging, warnings and the bars of other libraries are as before afterwards.

    Args:
        verbosity: one of :data:`VERBOSITIES`.

    Raises:
        ValueError: it is none of them.
    """
    check_choice("verbosity", verbosity, VERBOSITIES)
    handler = next((found for found in logger.handlers if isinstance(found, ConsoleHandler)), None)
    console = CleanConsole(stderr=True, quiet=not is_main()) if handler is None else handler.console
    with ExitStack() as stack:
        if verbosity == "silent":
            stack.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore")
            stack.enter_context(_level(logging.CRITICAL))
        elif verbosity == "progress" and handler is None:
            stack.enter_context(_handled(ConsoleHandler(console)))
            stack.enter_context(_level(logging.INFO))
        if verbosity != "warnings":
            stack.enter_context(_without_bars())
        display = RunDisplay(console, quiet=verbosity != "progress")
        stack.callback(display.close)
        yield display


@contextmanager
def _level(level: int) -> Iterator[None]:
    before = logger.level
    logger.setLevel(level)
    try:
        yield
    finally:
        logger.setLevel(before)


@contextmanager
def _handled(handler: logging.Handler) -> Iterator[None]:
    """Show the records of our logger by this handler alone."""
    propagates = logger.propagate
    logger.addHandler(handler)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagates


@contextmanager
def _without_bars() -> Iterator[None]:
    """Switch the progress bars and the chatter of datasets and transformers off."""
    import datasets
    import transformers

    of_transformers: Any = transformers.utils.logging
    bars, loading = datasets.are_progress_bars_disabled(), of_transformers.is_progress_bar_enabled()
    level = of_transformers.get_verbosity()
    datasets.disable_progress_bars()
    of_transformers.disable_progress_bar()
    of_transformers.set_verbosity_error()
    try:
        yield
    finally:
        of_transformers.set_verbosity(level)
        if loading:
            of_transformers.enable_progress_bar()
        if not bars:
            datasets.enable_progress_bars()
