"""The live line of a training run."""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn
from transformers import TrainerCallback

from loraprune.display.console import COLUMNS, fitting
from loraprune.display.steps import PLAIN_LINES
from loraprune.display.time_left import Course, MeasuredSoFar, StepWork, seconds_left
from loraprune.pruning.phase_timer import CUTTING, MASKING
from loraprune.record.numbers import clock, short_count

if TYPE_CHECKING:
    from transformers import TrainerControl, TrainerState, TrainingArguments

    from loraprune.pruning.callback import PruningCallback

_BAR = 12
_WINDOW = 32
"""Number of latest steps that define the pace, because the load of a machine changes."""


class TrainingProgress(TrainerCallback):
    """Shows step, loss, ratio, speed and time left: a live line in a terminal, otherwise a few plain lines.

    Args:
        console: console to print to.
        quiet: print nothing.
        pruning: callback that prunes the model, or None; it must be called before this callback.
        work: operations of a step; by default, they are estimated from the parameters.
        eval_steps: steps from one evaluation to the next; 0 without evaluations.
    """

    def __init__(
        self,
        console: Console,
        *,
        quiet: bool = False,
        pruning: PruningCallback | None = None,
        work: StepWork | None = None,
        eval_steps: int = 0,
    ) -> None:
        self._console = console
        self._quiet = quiet
        self._pruning = pruning
        self._work = work
        self._eval_steps = eval_steps
        self._progress: Progress | None = None
        self._facts: list[str] = []
        self._held_out = ""
        self._logged = (0.0, 0.0)
        self._evaluations: list[float] = []

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Open the display."""
        self._begun = time.monotonic()
        self._course = self._course_of(state.max_steps)
        self._begun_cutting = self._cutting()
        self._first = state.global_step
        self._marks: deque[tuple[int, float]] = deque(maxlen=_WINDOW)
        self._logged = (self._begun, 0.0)
        if self._console.is_terminal and not self._quiet:
            self._progress = Progress(
                TextColumn("step {task.completed:.0f}/{task.total:.0f}"),
                BarColumn(bar_width=_BAR),
                TaskProgressColumn(),
                TextColumn("{task.fields[facts]}", markup=False),
                TextColumn("{task.fields[left]}", style="cyan"),
                console=self._console,
                transient=True,
            )
            self._task = self._progress.add_task(
                "", total=state.max_steps, completed=state.global_step, facts="", left=""
            )
            self._progress.start()

    def _course_of(self, steps: int) -> Course:
        """The planned course of the run, before its first step."""
        run = None if self._pruning is None else self._pruning.run
        work = self._work
        if run is None or not run.schedule:
            plain = work.plain if work else 1.0
            work = StepWork(listening=plain, plain=plain, after=plain)
        elif work is None:
            structure = run.structure
            gone = 0.0 if run.config.unstructured else run.schedule[-1].ratio * structure.prunable_parameters
            work = StepWork.of_parameters(structure.num_parameters, round(structure.num_parameters - gone))
        cuts = () if run is None else tuple(run.schedule)
        return Course(steps=steps, work=work, cuts=cuts, eval_steps=self._eval_steps)

    def _cutting(self) -> float:
        """Seconds spent on cuts so far."""
        phases = {} if self._pruning is None else self._pruning.phases.seconds
        return phases.get(CUTTING, 0.0) + phases.get(MASKING, 0.0)

    def evaluated(self, seconds: float, facts: str) -> None:
        """Record an evaluation.

        Args:
            seconds: duration.
            facts: result, in a few words.
        """
        self._evaluations.append(seconds)
        self._held_out = facts

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Record the logged values."""
        if not logs or "loss" not in logs:
            return
        now, tokens = time.monotonic(), float(logs.get("num_tokens", 0.0))
        before, tokens_before = self._logged
        self._logged = (now, tokens)
        self._facts = [f"loss {float(logs['loss']):.3f}"]
        if self._course.cuts and "sparsity_ratio" in logs:
            share, left = f"{logs['sparsity_ratio']:.1%}", logs.get("base_parameters")
            # Unstructured pruning removes no parameters.
            self._facts.append(f"{share} zero" if left is None else f"{share} pruned, {short_count(left)} left")
        speed = (tokens - tokens_before) / max(now - before, 1e-9)
        if tokens_before and speed > 0:
            self._facts.append(f"{short_count(speed)} tokens/s")

    def _seconds_left(self, step: int) -> float | None:
        since, then = self._marks[0]
        now = self._marks[-1][1]
        made = sum(self._first < cut.step <= step for cut in self._course.cuts)
        cutting = self._cutting() - self._begun_cutting
        return seconds_left(
            self._course,
            MeasuredSoFar(
                since=since,
                step=step,
                seconds=now - then,
                cuts=[cutting / made] * made if made else (),
                evaluations=self._evaluations,
            ),
        )

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Update the display."""
        step = state.global_step
        elapsed = time.monotonic() - self._begun
        # The first step allocates memory, so it is not counted.
        self._marks.append((step, elapsed - (self._cutting() - self._begun_cutting) - sum(self._evaluations)))
        seconds = self._seconds_left(step)
        left = "" if seconds is None else f"{clock(seconds)} left"
        facts = [*self._facts[:1], self._held_out, *self._facts[1:]]
        if self._progress is not None:
            taken = len(f"step {state.max_steps}/{state.max_steps} {'':{_BAR}} 100%  {left} ")
            fitted = fitting(facts, max(0, self._console.width - taken))
            self._progress.update(self._task, completed=step, facts=fitted, left=left)
        elif not self._quiet and step % max(1, state.max_steps // PLAIN_LINES) == 0:
            end = f"  {left}" if left else ""
            line = fitting([f"step {step}/{state.max_steps}", *facts], COLUMNS - len(end)) + end
            self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Close the display."""
        self.close()

    def close(self) -> None:
        """Remove the live line from the terminal, also after an error."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None
