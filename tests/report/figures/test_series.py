"""Lines are smoothed and thinned without losing what they tell."""

from __future__ import annotations

import math

from loraprune.report.figures.series import alone, moving_average, thin_out


def test_the_moving_average_stops_at_breaks_and_skips_gaps() -> None:
    values = [1.0, 1.0, 1.0, 9.0, math.nan, 9.0]
    assert moving_average(values, 3, breaks=[3]) == [1.0, 1.0, 1.0, 9.0, 9.0, 9.0]


def test_the_moving_average_of_a_gap_wider_than_the_window_is_nan() -> None:
    assert math.isnan(moving_average([1.0, math.nan, math.nan, math.nan, 1.0], 3)[2])


def test_thinning_keeps_the_extremes() -> None:
    points = [(float(i), 0.0) for i in range(10_000)]
    points[1234] = (1234.0, 7.0)
    points[4321] = (4321.0, -7.0)
    thinned = thin_out(points, 100)
    assert len(thinned) <= 102
    assert {(1234.0, 7.0), (4321.0, -7.0)} <= set(thinned)
    assert thinned == sorted(thinned)


def test_points_between_gaps_stand_alone() -> None:
    points = [(0.0, math.nan), (1.0, 1.0), (2.0, math.inf), (3.0, math.nan), (4.0, 2.0), (5.0, 3.0)]
    assert alone(points) == [(1.0, 1.0)]
    assert alone([(4.0, 2.0)]) == [(4.0, 2.0)]
