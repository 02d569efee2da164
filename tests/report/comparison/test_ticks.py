"""Ticks are round and short."""

from __future__ import annotations

import pytest
from matplotlib.figure import Figure

from loraprune.record import numbers
from loraprune.report.comparison.ticks import set_ticks, set_time_ticks, time_text, without_zeros


@pytest.mark.parametrize(
    ("text", "expected"),
    [("5.00 ms", "5 ms"), ("2.50 M", "2.5 M"), ("100", "100"), ("50.0 %", "50 %"), ("0.70", "0.7"), ("1,000", "1,000")],
)
def test_zeros_that_say_nothing_go(text: str, expected: str) -> None:
    assert without_zeros(text) == expected


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(0, "0 s"), (0.1, "0.1 s"), (30, "30 s"), (60, "1 min"), (290, "4 min 50 s"), (5400, "1.5 h"), (172_800, "2 d")],
)
def test_lengths_of_time_are_in_one_unit_if_they_are_round(seconds: float, expected: str) -> None:
    assert time_text(seconds) == expected


def ticks(values: list[float], *, time: bool = False) -> tuple[str, list[str]]:
    axes = Figure().subplots()
    axes.plot(values, values, "o")
    if time:
        set_time_ticks(axes.xaxis, values, 3)
    else:
        set_ticks(axes.xaxis, values, numbers.count, 4)
    low, high = axes.get_xlim()
    shown = [tick for tick in axes.get_xticks() if low <= tick <= high]
    return axes.get_xscale(), [axes.xaxis.get_major_formatter()(tick) for tick in shown]


def test_figures_of_one_magnitude_are_linear() -> None:
    scale, texts = ticks([1.5e6, 3.1e6])
    assert scale == "linear"
    assert "2 M" in texts


def test_figures_that_spread_are_logarithmic() -> None:
    scale, texts = ticks([1e6, 5e9])
    assert scale == "log"
    assert {"10 M", "1 B"} <= set(texts)


def test_times_that_spread_have_the_ticks_of_a_clock() -> None:
    scale, texts = ticks([12.0, 9000.0], time=True)
    assert scale == "log"
    assert texts == ["10 s", "1 min", "10 min", "1 h"]


@pytest.mark.parametrize("least", [0.3, 7, 61, 601, 3601, 40_000])
def test_times_that_spread_a_little_have_ticks_too(least: float) -> None:
    scale, texts = ticks([least, 9 * least], time=True)
    assert scale == "log"
    assert 2 <= len(texts) <= 6


def test_times_of_one_magnitude_have_whole_minutes() -> None:
    scale, texts = ticks([280.0, 900.0], time=True)
    assert scale == "linear"
    assert texts == ["5 min", "10 min", "15 min"]


def test_a_single_figure_has_a_tick() -> None:
    assert ticks([60.0], time=True)[1]
