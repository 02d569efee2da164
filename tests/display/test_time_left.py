from __future__ import annotations

import pytest

from loraprune.allocation.schedule import ScheduledCut
from loraprune.display.time_left import CUT_STEPS, Course, MeasuredSoFar, StepWork, seconds_left

WORK = StepWork(listening=13.0, plain=10.0, after=5.0)
HALF = (ScheduledCut(10, 0.25), ScheduledCut(20, 0.5))


def course(steps: int = 100, cuts: tuple[ScheduledCut, ...] = HALF, eval_steps: int = 0) -> Course:
    return Course(steps=steps, work=WORK, cuts=cuts, eval_steps=eval_steps)


def simulated(steps: int, pace: float, cut: float) -> list[tuple[float, float]]:
    """Busy seconds after each step, and all seconds with cuts, of a run that behaves as the course says."""
    busy = total = 0.0
    times = [(0.0, 0.0)]
    for step in range(1, steps + 1):
        seconds = pace * (13.0 if step <= 10 else 13.0 * 0.75 if step <= 20 else 5.0)
        busy, total = busy + seconds, total + seconds + (cut if step in (10, 20) else 0.0)
        times.append((busy, total))
    return times


@pytest.mark.parametrize("step", [11, 15, 20, 25, 60, 99])
def test_after_the_first_cut_the_time_left_is_exact_though_steps_become_faster(step: int) -> None:
    times = simulated(100, pace=0.1, cut=40.0)
    made = [40.0] * sum(cut.step <= step for cut in HALF)
    found = seconds_left(course(), MeasuredSoFar(since=1, step=step, seconds=times[step][0] - times[1][0], cuts=made))
    assert found == pytest.approx(times[100][1] - times[step][1], rel=1e-9, abs=1e-9)


def test_a_mean_over_all_steps_would_be_several_times_too_long() -> None:
    times = simulated(100, pace=0.1, cut=40.0)
    naive = times[20][1] / 20 * 80
    assert naive > 3 * (times[100][1] - times[20][1])


def test_before_the_first_cut_cuts_are_assumed_to_take_a_few_steps() -> None:
    found = seconds_left(course(), MeasuredSoFar(since=1, step=5, seconds=4 * 1.3))
    steps = 0.1 * (5 * 13.0 + 10 * 13.0 * 0.75 + 80 * 5.0)
    assert found == pytest.approx(steps + 2 * CUT_STEPS * 1.0)


def test_nothing_is_said_before_a_step_was_measured() -> None:
    assert seconds_left(course(), MeasuredSoFar(since=1, step=1, seconds=0.0)) is None


def test_evaluations_count_what_earlier_ones_took() -> None:
    measured = MeasuredSoFar(since=20, step=50, seconds=30 * 0.5, evaluations=[2.0, 4.0])
    plain = seconds_left(course(), measured)
    assert plain is not None
    # at 60, 70, 80, 90 and 100
    assert seconds_left(course(eval_steps=10), measured) == pytest.approx(plain + 5 * 3.0)


def test_a_run_without_cuts_has_steps_of_one_cost() -> None:
    flat = Course(steps=10, work=StepWork(listening=1.0, plain=1.0, after=1.0))
    assert seconds_left(flat, MeasuredSoFar(since=1, step=4, seconds=6.0)) == pytest.approx(12.0)


def test_at_the_last_step_no_time_is_left() -> None:
    assert seconds_left(course(), MeasuredSoFar(since=1, step=100, seconds=50.0, cuts=[1.0, 1.0])) == 0.0


def test_cuts_before_training_leave_small_steps_alone() -> None:
    assert course(cuts=(ScheduledCut(0, 0.5),)).work_of(1) == 5.0


def test_work_follows_from_the_parameters_where_nothing_else_is_known() -> None:
    work = StepWork.of_parameters(1000, 600)
    assert (work.plain, work.after) == (1000.0, 600.0)
    assert work.at(1.0, listening=False) == 600.0
    assert work.at(0.5, listening=False) == 800.0
