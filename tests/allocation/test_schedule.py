from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loraprune.allocation.schedule import ScheduledCut, cubic_ratio, cut_schedule


@pytest.mark.parametrize(
    ("progress", "ratio"), [(0.0, 0.0), (0.25, 0.37 / 0.64 * 0.5), (0.5, 0.4375), (0.75, 0.4921875), (1.0, 0.5)]
)
def test_the_cubic_ratio_has_its_known_values(progress, ratio):
    assert cubic_ratio(progress, 0.5) == pytest.approx(ratio, abs=1e-12)


def test_the_cubic_ratio_stays_within_the_pruning_phase():
    assert cubic_ratio(-1.0, 0.5) == 0.0
    assert cubic_ratio(2.0, 0.5) == 0.5


def test_the_cuts_stand_where_they_are_computed_by_hand():
    # Evenly between steps 10 and 40, at 1/4, 2/4, 3/4 and all of the cubic curve: 1 - (3/4)^3 = 37/64 and so on.
    cuts = cut_schedule(total_steps=100, start=0.1, end=0.4, cuts=4, ratio=0.64)
    assert [cut.step for cut in cuts] == [10, 20, 30, 40]
    assert [cut.ratio for cut in cuts] == pytest.approx([0.37, 0.56, 0.63, 0.64], abs=1e-12)


@given(
    total_steps=st.integers(1, 500),
    bounds=st.tuples(st.floats(0, 1), st.floats(0.001, 1)).map(sorted),
    cuts=st.integers(1, 40),
    ratio=st.floats(0.01, 0.99),
)
def test_any_schedule_rises_to_the_exact_ratio_and_ends_where_pruning_ends(total_steps, bounds, cuts, ratio):
    start, end = bounds
    schedule = cut_schedule(total_steps=total_steps, start=start, end=end, cuts=cuts, ratio=ratio)
    assert schedule[-1] == ScheduledCut(max(1, round(end * total_steps)), ratio)
    assert 1 <= len(schedule) <= cuts
    assert schedule[0].step >= max(1, min(round(start * total_steps), schedule[-1].step))
    steps, ratios = [cut.step for cut in schedule], [cut.ratio for cut in schedule]
    assert steps == sorted(set(steps))
    assert ratios == sorted(set(ratios))
    assert ratios[0] > 0.0


def test_a_single_cut_stands_at_the_end_of_the_pruning_phase():
    assert cut_schedule(total_steps=100, start=0.1, end=0.3, cuts=1, ratio=0.5) == [ScheduledCut(30, 0.5)]


def test_in_a_short_run_cuts_that_fall_on_one_step_become_the_largest():
    schedule = cut_schedule(total_steps=3, start=0.0, end=1.0, cuts=6, ratio=0.5)
    assert [cut.step for cut in schedule] == [1, 2, 3]
    assert schedule[-1].ratio == 0.5
    # The first of three steps takes the first two of six cuts (at 0 and 0.4 of two steps).
    assert schedule[0].ratio == pytest.approx(0.5 * (1 - (4 / 6) ** 3))


def test_a_run_of_one_step_has_one_cut():
    assert cut_schedule(total_steps=1, start=0.1, end=0.3, cuts=10, ratio=0.5) == [ScheduledCut(1, 0.5)]


def test_a_ratio_of_zero_gives_no_cuts():
    assert cut_schedule(total_steps=10, start=0.1, end=0.3, cuts=3, ratio=0.0) == []


def test_an_end_of_zero_is_one_cut_before_the_first_step():
    assert cut_schedule(total_steps=10, start=0.0, end=0.0, cuts=3, ratio=0.5) == [ScheduledCut(0, 0.5)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"total_steps": 0}, "at least one step, not 0"),
        ({"start": -0.1}, r"runs from -0\.1 to 0\.3"),
        ({"start": 0.4}, r"runs from 0\.4 to 0\.3"),
        ({"end": 1.1}, r"runs from 0\.1 to 1\.1"),
        ({"cuts": 0}, "number of cuts is 0"),
        ({"ratio": 1.0}, r"ratio is 1\.0"),
        ({"ratio": -0.5}, r"ratio is -0\.5"),
    ],
)
def test_values_out_of_range_are_refused_by_name(change, message):
    values = {"total_steps": 10, "start": 0.1, "end": 0.3, "cuts": 3, "ratio": 0.5, **change}
    with pytest.raises(ValueError, match=message):
        cut_schedule(**values)


def test_cuts_every_few_steps_end_where_pruning_ends():
    # Steps 10, 20, 30 and the last one, 35: a quarter, two and three quarters, and all of the cubic curve.
    cuts = cut_schedule(total_steps=100, start=0.1, end=0.35, cuts=5, ratio=0.64, every=10)
    assert [cut.step for cut in cuts] == [10, 20, 30, 35]
    assert [cut.ratio for cut in cuts] == pytest.approx([0.37, 0.56, 0.63, 0.64], abs=1e-12)


def test_steps_between_cuts_that_outlast_the_phase_leave_two_cuts():
    assert [cut.step for cut in cut_schedule(total_steps=10, start=0.1, end=0.5, cuts=5, ratio=0.5, every=100)] == [
        1,
        5,
    ]


def test_cuts_every_zero_steps_are_refused():
    with pytest.raises(ValueError, match="every 0 steps is not possible"):
        cut_schedule(total_steps=10, start=0.1, end=0.5, cuts=5, ratio=0.5, every=0)
