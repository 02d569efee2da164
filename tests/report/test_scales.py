"""Ticks stand at round values inside the range."""

from __future__ import annotations

import pytest

from loraprune.report import scales


@pytest.mark.parametrize(
    ("low", "high", "labels"),
    [
        (0, 704, ["0", "200", "400", "600"]),
        (1.5, 3.5, ["1.5", "2.0", "2.5", "3.0", "3.5"]),
        (0, 20_000, ["0", "5,000", "10,000", "15,000", "20,000"]),
        (-1, 1, ["\N{MINUS SIGN}1.0", "\N{MINUS SIGN}0.5", "0.0", "0.5", "1.0"]),
    ],
)
def test_ticks_are_round(low: float, high: float, labels: list[str]) -> None:
    assert [label for _, label in scales.ticks(low, high, 4)] == labels


def test_whole_ticks_are_whole() -> None:
    assert [value for value, _ in scales.ticks(0, 2, 4, whole=True)] == [0, 1, 2]


@pytest.mark.parametrize("values", [(), (2.0,), (0.0, 0.0), (-3.0, 5.0), (1.43, 3.19)])
def test_a_domain_holds_its_values(values: tuple[float, ...]) -> None:
    low, high = scales.nice_domain(values, 4)
    assert low < high
    assert all(low <= value <= high for value in values)


def test_ticks_of_a_wide_logarithmic_range_are_powers_of_ten() -> None:
    assert [value for value, _ in scales.log_ticks(-6.3, -1.9, 7)] == [-6, -5, -4, -3, -2]


@pytest.mark.parametrize(("low", "high"), [(-0.7, 0.46), (-4.6, -4.5), (0.32, 0.69), (-320, -300), (2.2, 2.9)])
def test_every_logarithmic_range_has_ticks(low: float, high: float) -> None:
    assert 2 <= len(scales.log_ticks(low, high, 6)) <= 6
    assert all(low - 1e-6 <= value <= high + 1e-6 for value, _ in scales.log_ticks(low, high, 6))
