"""Numbers are written with a sensible number of digits, and what is no number says so."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import pytest

from loraprune.record import numbers

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (4.094, "4.09"),
        (12, "12.0"),
        (9.999, "10.0"),
        (99.95, "100"),
        (295.4, "295"),
        (14813.2, "14,813"),
        (1.234e9, "1.23e9"),
        (0.000123, "0.000123"),
        (1.234e-7, "1.23e\N{MINUS SIGN}7"),
        (-0.5, "\N{MINUS SIGN}0.500"),
    ],
)
def test_significant_digits(value: float, text: str) -> None:
    assert numbers.significant(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (704, "704"),
        (9999, "9,999"),
        (12_345, "12.3 k"),
        (999_999, "1.00 M"),
        (5_480_000, "5.48 M"),
        (6.738e9, "6.74 B"),
    ],
)
def test_counts(value: float, text: str) -> None:
    assert numbers.count(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0 B"), (512, "512 B"), (999.9e3, "1.00 MB"), (10.94e6, "10.9 MB"), (13.5e9, "13.5 GB")]
)
def test_file_sizes(value: float, text: str) -> None:
    assert numbers.file_size(value) == text


@pytest.mark.parametrize(("value", "text"), [(12.34, "12.3 ms"), (0.05, "0.0500 ms"), (12_340, "12.3 s")])
def test_milliseconds(value: float, text: str) -> None:
    assert numbers.milliseconds(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.25, "0.25 s"),
        (1.26, "1.3 s"),
        (9.96, "10 s"),
        (45, "45 s"),
        (59.6, "1 min 00 s"),
        (133, "2 min 13 s"),
        (3599.7, "1 h 00 min"),
        (11_100, "3 h 05 min"),
    ],
)
def test_durations(value: float, text: str) -> None:
    assert numbers.duration(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (-0.5, "\N{MINUS SIGN}50.0 %"),
        (0.031, "+3.1 %"),
        (0.0004, "+0.04 %"),
        (-1e-9, "0.0 %"),
        (0, "0.0 %"),
        (12.5, "+1,250 %"),
    ],
)
def test_signed_percentages(value: float, text: str) -> None:
    assert numbers.percent(value, signed=True) == text


def test_percentages_without_sign() -> None:
    assert numbers.percent(0.5) == "50.0 %"


def test_factors() -> None:
    assert numbers.times(1.613) == "1.61\N{MULTIPLICATION SIGN}"


@pytest.mark.parametrize(
    "show",
    [
        numbers.significant,
        numbers.count,
        numbers.file_size,
        numbers.milliseconds,
        numbers.duration,
        numbers.percent,
        numbers.times,
    ],
)
def test_what_is_missing_is_a_dash_and_what_is_no_number_says_so(show: Callable[[float | None], str]) -> None:
    assert [show(value) for value in (None, math.nan, math.inf, -math.inf)] == ["–", "NaN", "∞", "−∞"]


@pytest.mark.parametrize(("number", "text"), [(0, "0 rows"), (1, "1 row"), (2, "2 rows"), (1408, "1,408 rows")])
def test_a_noun_agrees_with_the_number_that_counts_it(number: int, text: str) -> None:
    assert numbers.counted(number, "row") == text
