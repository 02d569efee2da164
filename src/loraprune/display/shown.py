"""The display of a run: progress, warnings only, or nothing."""

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
"""Values of ``verbosity``, from most to least output."""

_LIBRARIES = r"(accelerate|datasets|peft|transformers|trl)\b"

logger = logging.getLogger("loraprune")


class RunDisplay:
    """Shows the progress of a run on a console.

    Args:
        console: console to print to.
        quiet: show no progress.

    Attributes:
        steps: display of work in steps; a :data:`~loraprune.calibration.progress.ProgressOf`.
        quiet: whether progress is hidden.
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
            asked: print to standard output, because the block is the command's result.
        """
        console = CleanConsole(file=sys.stdout, quiet=not is_main()) if asked else self._console
        for line in fact_lines(title, facts):
            print_line(console, line)

    def training(
        self, pruning: PruningCallback, *, work: StepWork | None = None, eval_steps: int = 0
    ) -> TrainingProgress:
        """Return the callback that shows training; see :class:`~loraprune.display.training.TrainingProgress`."""
        from loraprune.display.training import TrainingProgress

        self._training = TrainingProgress(
            self._console, quiet=self.quiet, pruning=pruning, work=work, eval_steps=eval_steps
        )
        return self._training

    def close(self) -> None:
        """Remove live lines from the terminal."""
        self.steps.close()
        if self._training is not None:
            self._training.close()


@contextmanager
def run_display(verbosity: str) -> Iterator[RunDisplay]:
    """Open the display of a run; afterwards, restore logging, warnings and other libraries' progress bars.

    Args:
        verbosity: one of :data:`VERBOSITIES`.

    Raises:
        ValueError: ``verbosity`` is none of these.
    """
    check_choice("verbosity", verbosity, VERBOSITIES)
    handler = next((found for found in logger.handlers if isinstance(found, ConsoleHandler)), None)
    console = CleanConsole(stderr=True, quiet=not is_main()) if handler is None else handler.console
    with ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        # A caller of ours cannot act on deprecations inside other libraries.
        warnings.filterwarnings("ignore", category=FutureWarning, module=_LIBRARIES)
        if verbosity == "silent":
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
    """Send the records of our logger to this handler only."""
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
    """Turn off progress bars and informational messages of datasets and transformers."""
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
