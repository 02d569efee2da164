"""Estimate of the time left in a training run, from operations of steps and measured times of cuts and evaluations."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from loraprune.allocation.schedule import ScheduledCut

LISTENING = 1.3
"""Cost of a step that gathers evidence, relative to one that does not. An assumption, if nothing better is known."""

CUT_STEPS = 3.0
"""Cost of a cut in steps of the whole model, until one is measured. An assumption."""


@dataclass(frozen=True, kw_only=True)
class StepWork:
    """Operations of an optimizer step, in any unit.

    Attributes:
        listening: operations of the whole model while evidence is gathered.
        plain: operations of the whole model.
        after: operations of the model after the last cut.
    """

    listening: float
    plain: float
    after: float

    @classmethod
    def of_parameters(cls, before: int, after: int) -> StepWork:
        """Assume operations proportional to the model's parameters."""
        return cls(listening=LISTENING * before, plain=float(before), after=float(after))

    def at(self, share: float, *, listening: bool) -> float:
        """Return the operations of a step after part of the removal.

        Args:
            share: reached ratio as a share of the final ratio, in [0, 1].
            listening: whether cuts are still to come.
        """
        whole = self.listening if listening else self.plain
        return whole * (1.0 - share * (1.0 - self.after / self.plain))


@dataclass(frozen=True, kw_only=True)
class Course:
    """Planned steps, cuts and evaluations of a run.

    Attributes:
        steps: number of optimizer steps of the whole run.
        work: operations of a step.
        cuts: cuts of the whole run, in order; those at step 0 are made before training.
        eval_steps: steps from one evaluation to the next; 0 without evaluations.
    """

    steps: int
    work: StepWork
    cuts: Sequence[ScheduledCut] = ()
    eval_steps: int = 0

    def work_of(self, step: int) -> float:
        """Return the operations of an optimizer step; steps are counted from 1."""
        target = self.cuts[-1].ratio if self.cuts else 0.0
        reached = max((cut.ratio for cut in self.cuts if cut.step < step), default=0.0)
        listening = any(cut.step >= step for cut in self.cuts)
        return self.work.at(reached / target if target else 0.0, listening=listening)

    def work_between(self, done: int, end: int) -> float:
        """Return the operations of the steps after ``done``, up to and including ``end``."""
        edges = sorted({done, end, *(cut.step for cut in self.cuts if done < cut.step < end)})
        return sum((last - first) * self.work_of(last) for first, last in itertools.pairwise(edges))

    def cuts_after(self, step: int) -> int:
        """Return the number of cuts after a step."""
        return sum(cut.step > step for cut in self.cuts)

    def evaluations_after(self, step: int) -> int:
        """Return the number of evaluations after a step."""
        if not self.eval_steps or step >= self.steps:
            return 0
        return -(-self.steps // self.eval_steps) - step // self.eval_steps  # the last step has an evaluation


@dataclass(frozen=True, kw_only=True)
class MeasuredSoFar:
    """Measured times so far.

    Attributes:
        since: step after which the measurement starts.
        step: last finished step.
        seconds: seconds of the steps between the two, without cuts and evaluations.
        cuts: seconds of each cut so far.
        evaluations: seconds of each evaluation so far.
    """

    since: int
    step: int
    seconds: float
    cuts: Sequence[float] = ()
    evaluations: Sequence[float] = ()


def seconds_left(course: Course, measured: MeasuredSoFar) -> float | None:
    """Estimate the seconds until the last step is done.

    Args:
        course: planned course of the run.
        measured: measured times so far.

    Returns:
        The estimate, or None if no step was measured.
    """
    worked = course.work_between(measured.since, measured.step)
    if worked <= 0.0:
        return None
    pace = measured.seconds / worked
    steps = pace * course.work_between(measured.step, course.steps)
    first = pace * CUT_STEPS * course.work.plain
    cuts = course.cuts_after(measured.step) * _mean(measured.cuts, first)
    # The number of evaluation rows is unknown, so the first evaluation counts as 0.
    evaluations = course.evaluations_after(measured.step) * _mean(measured.evaluations, 0.0)
    return steps + cuts + evaluations


def _mean(values: Sequence[float], otherwise: float) -> float:
    return sum(values) / len(values) if values else otherwise
