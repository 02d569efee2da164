"""The front holds exactly what nothing else beats."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loraprune.report.comparison.result import pareto_front

figures = st.one_of(st.none(), st.integers(0, 4).map(float), st.floats())
candidates = st.lists(st.tuples(figures, figures), max_size=12)


def beats(one: tuple[float, float], other: tuple[float, float], higher_is_better: bool) -> bool:
    """The definition: at least as good in both, and better in one."""
    if not higher_is_better:
        return one[0] <= other[0] and one[1] <= other[1] and one != other
    return one[0] <= other[0] and one[1] >= other[1] and one != other


@given(candidates, st.booleans())
def test_the_front_is_what_nothing_beats(points: list[tuple[float | None, float | None]], higher: bool) -> None:
    known = [
        (cost, quality)
        for cost, quality in points
        if cost is not None and quality is not None and math.isfinite(cost) and math.isfinite(quality)
    ]
    expected = tuple(
        point in known and not any(beats(other, point, higher) for other in known)  # type: ignore[arg-type]
        for point in points
    )
    costs, qualities = [cost for cost, _ in points], [quality for _, quality in points]
    assert pareto_front(costs, qualities, higher_is_better=higher) == expected


def test_equal_candidates_are_on_it_together() -> None:
    assert pareto_front([1, 1, 2], [5, 5, 6], higher_is_better=False) == (True, True, False)


def test_of_equal_costs_the_better_quality_alone_is_on_it() -> None:
    assert pareto_front([1, 1, 2], [5, 6, 6], higher_is_better=True) == (False, True, False)


def test_what_has_no_figure_is_not_on_it_and_beats_nothing() -> None:
    assert pareto_front([0.0, math.nan, None, 3.0], [math.nan, 1.0, 1.0, 2.0], higher_is_better=False) == (
        False,
        False,
        False,
        True,
    )


def test_lists_of_different_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="2 costs and 1 qualities"):
        pareto_front([1, 2], [1], higher_is_better=True)
