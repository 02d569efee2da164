from __future__ import annotations

from argparse import ArgumentTypeError

import pytest

from loraprune.cli.options import indices, parameter_count
from loraprune.record.numbers import clock, short_count


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("4.5B", 4_500_000_000),
        ("350M", 350_000_000),
        ("350m", 350_000_000),
        ("120k", 120_000),
        ("1.5T", 1_500_000_000_000),
        ("2G", 2_000_000_000),
        ("27_000", 27_000),
        ("27,000", 27_000),
        ("27e3", 27_000),
        (" 12 ", 12),
        (4_500, 4_500),
        (4.5e9, 4_500_000_000),
    ],
)
def test_numbers_of_parameters_are_read_as_people_write_them(text: str, number: int) -> None:
    assert parameter_count(text) == number


@pytest.mark.parametrize("text", ["", "B", "half", "4.5BB", "4.5 billion", "nan", "inf", "1e999"])
def test_what_is_no_number_is_refused_with_examples(text: str) -> None:
    with pytest.raises(ArgumentTypeError, match=r"is not a parameter count; write 4\.5B, 350M or 120000"):
        parameter_count(text)


def test_times_and_counts_are_written_for_people() -> None:
    assert [clock(seconds) for seconds in (0, 75.4, 3600, 36_061)] == ["0:00", "1:15", "1:00:00", "10:01:01"]
    assert [short_count(number) for number in (7, 999, 4_523, 4_523_000, 7e9)] == ["7", "999", "4.52k", "4.52M", "7B"]


def test_layers_are_numbers_ranges_and_shares() -> None:
    assert indices("0, 4-6,-1") == (0, 4, 5, 6, -1)
    assert indices("10%,-1") == ("10%", -1)


@pytest.mark.parametrize("text", ["a", "1.5", "6-4", "%", "0,x"])
def test_what_is_no_list_of_layers_is_refused(text: str) -> None:
    with pytest.raises(ArgumentTypeError, match="is not a list of layers; write it like 0,1,-1"):
        indices(text)
