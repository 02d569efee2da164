"""The live line of a training run."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, TaskProgressColumn, TextColumn
from rich.text import Text
from transformers import TrainerCallback

if TYPE_CHECKING:
    from rich.progress import Task
    from transformers import TrainerControl, TrainerState, TrainingArguments

PLAIN_LINES = 10


def duration(seconds: float) -> str:
    """``75.4`` as ``1:15``."""
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


def count(number: float) -> str:
    """``4523000`` as ``4.52M``."""
    for limit, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= limit:
            return f"{number / limit:.3g}{letter}"
    return f"{number:.0f}"


class _Remaining(ProgressColumn):
    """Time left, at the pace of the last steps: each cut makes the rest of the run faster."""

    def render(self, task: Task) -> Text:
        left = task.fields.get("left")
        return Text("" if left is None else f"{duration(left)} left", style="cyan")


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
                TextColumn("{task.fields[facts]}"),
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
            facts.append(f"{share} zero" if left is None else f"{share} pruned, {count(left)} left")
        if len(self._marks) > 2 and speed > 0:
            facts.append(f"{count(speed)} tokens/s")
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
                end = "" if left is None else f"  {duration(left)} left"
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
