from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loraprune.sparsity.pattern import SparsityPattern, parse_pattern


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("2:4", SparsityPattern(0.5, 2, 4)),
        (" 4:8 ", SparsityPattern(0.5, 4, 8)),
        ("1:3", SparsityPattern(1 / 3, 1, 3)),
        ("15:16", SparsityPattern(15 / 16, 15, 16)),
        (0.5, SparsityPattern(0.5)),
        ("0.5", SparsityPattern(0.5)),
        ("50%", SparsityPattern(0.5)),
        ("2.5 %", SparsityPattern(0.025)),
    ],
)
def test_a_share_a_percentage_and_a_pattern_are_read(value, expected):
    assert parse_pattern(value) == expected


@pytest.mark.parametrize("value", ["2:4", "4:8", "50%", "17%"])
def test_a_pattern_is_written_as_it_is_read(value):
    assert str(parse_pattern(value)) == value


@pytest.mark.parametrize("value", [0, 1, 1.5, -0.1, "0%", "100%", "nan", "inf", "-5%"])
def test_a_share_that_leaves_or_removes_nothing_is_refused_with_its_range(value):
    with pytest.raises(ValueError, match=r"must lie between 0 and 1") as raised:
        parse_pattern(value)
    assert f"The sparsity is {value};" in str(raised.value)


@pytest.mark.parametrize("value", ["0:4", "4:4", "5:4", "0:0"])
def test_a_pattern_that_leaves_or_removes_nothing_is_refused(value):
    with pytest.raises(ValueError, match=rf"The sparsity is {value}\..*less than M, as in 2:4"):
        parse_pattern(value)


@pytest.mark.parametrize("value", ["half", "2:", ":4", "2:4:8", "-2:4", "2.5:4", "", "50%%", "0,5"])
def test_anything_else_is_refused_with_what_would_do(value):
    with pytest.raises(ValueError, match=r"neither a share such as 0\.5 nor a pattern such as 2:4") as raised:
        parse_pattern(value)
    assert repr(value) in str(raised.value)


@given(hundredths=st.integers(1, 99), weights=st.integers(1, 5000))
def test_the_count_is_the_exact_product_rounded_down(hundredths, weights):
    exact = Fraction(hundredths, 100) * weights
    assert SparsityPattern(hundredths / 100).count(weights) == exact.numerator // exact.denominator
    assert parse_pattern(f"{hundredths}%").count(weights) == exact.numerator // exact.denominator


@given(m=st.integers(2, 32), parts=st.integers(1, 400), data=st.data())
def test_of_whole_parts_the_count_is_n_for_each(m, parts, data):
    n = data.draw(st.integers(1, m - 1))
    assert parse_pattern(f"{n}:{m}").count(parts * m) == parts * n


def test_a_width_that_m_does_not_divide_is_refused_with_the_name_of_the_layer_and_a_remedy():
    pattern = parse_pattern("4:8")
    pattern.check_width(24, "a.b")
    with pytest.raises(
        ValueError,
        match=r"^a\.b has 172 inputs, which is not a multiple of 8, so it cannot be 4:8-sparse.*such as 0\.5",
    ):
        pattern.check_width(172, "a.b")


def test_a_free_pattern_fits_every_width():
    parse_pattern(0.5).check_width(7, "a.b")
