"""Live lines: of a training run, and of work in steps."""

from __future__ import annotations

import time
from types import TracebackType
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, TaskProgressColumn, TextColumn
from rich.text import Text
from transformers import TrainerCallback

from loraprune.record.numbers import clock, short_count

if TYPE_CHECKING:
    from rich.progress import Task
    from transformers import TrainerControl, TrainerState, TrainingArguments

PLAIN_LINES = 10


class _Remaining(ProgressColumn):
    """Time left, at the pace of the last steps: each cut makes the rest of the run faster."""

    def render(self, task: Task) -> Text:
        left = task.fields.get("left")
        return Text("" if left is None else f"{clock(left)} left", style="cyan")


class TrainingProgress(TrainerCallback):
    """Shows step, loss, ratio, parameters, speed and time left; a live line in a terminal, else a few plain ones."""

    def __init__(self, console: Console, *, quiet: bool = False, prunes: bool = True) -> None:
        self._console = console
        self._prunes = prunes
        self._quiet = quiet
        self._progress: Progress | None = None
        self._facts = ""
        self._marks: list[tuple[float, int, float]] = []

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Open the display."""
        self._marks = [(time.monotonic(), state.global_step, 0.0)]
        if self._console.is_terminal and not self._quiet:
            self._progress = Progress(
                TextColumn("step {task.completed:.0f}/{task.total:.0f}"),
                BarColumn(bar_width=24),
                TaskProgressColumn(),
                TextColumn("{task.fields[facts]}", markup=False),
                _Remaining(),
                console=self._console,
                transient=True,
            )
            self._task = self._progress.add_task(
                "", total=state.max_steps, completed=state.global_step, facts="", left=None
            )
            self._progress.start()

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Take in the numbers of the last steps."""
        if not logs or "loss" not in logs:
            return
        now, tokens = time.monotonic(), float(logs.get("num_tokens", 0.0))
        before, _, tokens_before = self._marks[-1]
        speed = (tokens - tokens_before) / max(now - before, 1e-9)
        self._marks = [*self._marks[-4:], (now, state.global_step, tokens)]
        facts = [f"loss {float(logs['loss']):.3f}"]
        if self._prunes and "sparsity_ratio" in logs:
            share = f"{logs['sparsity_ratio']:.1%}"
            left = logs.get("base_parameters")
            # Where single weights become zero, none is gone.
            facts.append(f"{share} zero" if left is None else f"{share} pruned, {short_count(left)} left")
        if len(self._marks) > 2 and speed > 0:
            facts.append(f"{short_count(speed)} tokens/s")
        self._facts = "  ".join(facts)

    def _seconds_left(self, state: TrainerState) -> float | None:
        then, step, _ = self._marks[0]
        steps = state.global_step - step
        return (time.monotonic() - then) / steps * (state.max_steps - state.global_step) if steps else None

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Move the display."""
        left = self._seconds_left(state)
        if self._progress is not None:
            self._progress.update(self._task, completed=state.global_step, facts=self._facts, left=left)
        elif not self._quiet:
            every = max(1, state.max_steps // PLAIN_LINES)
            if state.global_step % every == 0:
                end = "" if left is None else f"  {clock(left)} left"
                self._console.print(
                    f"step {state.global_step}/{state.max_steps}  {self._facts}{end}", markup=False, highlight=False
                )

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Close the display."""
        self.close()

    def close(self) -> None:
        """Give the terminal back, also after an error."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None


# The live line of work in steps: what is being done, how far it is, and the time left.


class StepsProgress:
    """Shows the pieces of work of a run one after the other; a live line in a terminal, else a few plain ones.

    Args:
        console: to print to.
        quiet: print nothing.
        rates: show how many steps are done in a second, too.
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
        self._close()

    def __call__(self, what: str, done: int, total: int) -> None:
        """A step is done."""
        now = time.monotonic()
        if what != self._what or done <= self._first:
            self._close()
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
            self._console.print(f"{what} {done}/{total}  {left}".rstrip(), markup=False, highlight=False)
        if done == total:
            self._close()
            self._what = ""

    def _open(self, what: str, total: int) -> None:
        if self._console.is_terminal and not self._quiet:
            self._live = Progress(
                TextColumn("{task.description} {task.completed:.0f}/{task.total:.0f}", markup=False),
                BarColumn(bar_width=24),
                TaskProgressColumn(),
                TextColumn("{task.fields[left]}", style="cyan"),
                console=self._console,
                transient=True,
            )
            self._task = self._live.add_task(what, total=total, left="")
            self._live.start()

    def _close(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None
