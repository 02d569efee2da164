"""Time left of a training run: steps cost what their operations cost, cuts and evaluations what earlier ones took."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from loraprune.allocation.schedule import ScheduledCut

LISTENING = 1.3
"""Cost of a step that gathers evidence, relative to one that does not, if nothing better is known. An assumption."""

CUT_STEPS = 3.0
"""Cost of the first cut in steps of the whole model, until one is measured. An assumption."""


@dataclass(frozen=True, kw_only=True)
class StepWork:
    """Operations of an optimizer step, in any unit.

    Attributes:
        listening: of the whole model, while evidence is gathered.
        plain: of the whole model.
        after: of the model after the last cut.
    """

    listening: float
    plain: float
    after: float

    @classmethod
    def of_parameters(cls, before: int, after: int) -> StepWork:
        """Operations proportional to the parameters of the model."""
        return cls(listening=LISTENING * before, plain=float(before), after=float(after))

    def at(self, share: float, *, listening: bool) -> float:
        """Operations of a step after a share of the removal.

        Args:
            share: ratio reached, as a share of the final one, in [0, 1].
            listening: whether cuts are still to come.
        """
        whole = self.listening if listening else self.plain
        return whole * (1.0 - share * (1.0 - self.after / self.plain))


@dataclass(frozen=True, kw_only=True)
class Course:
    """Cuts and evaluations of a run, which are known before it starts.

    Attributes:
        steps: optimizer steps of the whole run.
        work: of a step.
        cuts: of the whole run, in order; those at step 0 are made before training.
        eval_steps: steps from one evaluation to the next; 0 without evaluations.
    """

    steps: int
    work: StepWork
    cuts: Sequence[ScheduledCut] = ()
    eval_steps: int = 0

    def work_of(self, step: int) -> float:
        """Operations of an optimizer step, counted from 1."""
        target = self.cuts[-1].ratio if self.cuts else 0.0
        reached = max((cut.ratio for cut in self.cuts if cut.step < step), default=0.0)
        listening = any(cut.step >= step for cut in self.cuts)
        return self.work.at(reached / target if target else 0.0, listening=listening)

    def work_between(self, done: int, end: int) -> float:
        """Operations of the steps after ``done``, up to and with ``end``."""
        edges = sorted({done, end, *(cut.step for cut in self.cuts if done < cut.step < end)})
        return sum((last - first) * self.work_of(last) for first, last in itertools.pairwise(edges))

    def cuts_after(self, step: int) -> int:
        """Number of cuts still to be made after a step."""
        return sum(cut.step > step for cut in self.cuts)

    def evaluations_after(self, step: int) -> int:
        """Number of evaluations still to be made after a step."""
        if not self.eval_steps or step >= self.steps:
            return 0
        return -(-self.steps // self.eval_steps) - step // self.eval_steps  # the last step has one


@dataclass(frozen=True, kw_only=True)
class MeasuredSoFar:
    """What the run took so far.

    Attributes:
        since: step after which steps were measured.
        step: last finished step.
        seconds: of the steps between the two, without cuts and evaluations.
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
        course: of the run.
        measured: so far.

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
    # A forward pass over rows of unknown number: nothing is known before the first one.
    evaluations = course.evaluations_after(measured.step) * _mean(measured.evaluations, 0.0)
    return steps + cuts + evaluations


def _mean(values: Sequence[float], otherwise: float) -> float:
    return sum(values) / len(values) if values else otherwise
