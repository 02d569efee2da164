from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.checkpoint.exports.two_four import make_two_four_

from loraprune.checkpoint.exports.two_four import is_two_four, pack, unpack


def two_four(rows: int, groups: int, dtype: torch.dtype, seed: int, zeros: float) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, 4 * groups, generator=generator)
    weight[torch.rand(weight.shape, generator=generator) < zeros] = 0
    make_two_four_(weight)
    return weight.to(dtype)


@given(
    st.integers(1, 6),
    st.integers(1, 9),
    st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
    st.integers(0, 10_000),
    st.sampled_from([0.0, 0.3, 0.9, 1.0]),
)
def test_what_is_packed_unpacks_to_the_same_bits(
    rows: int, groups: int, dtype: torch.dtype, seed: int, zeros: float
) -> None:
    weight = two_four(rows, groups, dtype, seed, zeros)
    assert is_two_four(weight)
    unpacked = unpack(*pack(weight))
    assert unpacked.dtype == dtype
    assert torch.equal(unpacked, weight)


def test_the_bytes_are_as_documented() -> None:
    weight = torch.tensor([[0, 5, 0, 7, 1, 2, 0, 0, 0, 0, 0, 3]], dtype=torch.float16)
    values, places = pack(weight)
    assert values.tolist() == [[5, 7, 1, 2, 0, 3]]
    first, second, third = 1 | 3 << 2, 0 | 1 << 2, 0 | 3 << 2
    assert places.tolist() == [[first | second << 4, third]]
    assert places.dtype == torch.uint8


def test_packed_weights_take_nine_sixteenths_of_the_bytes_in_16_bits() -> None:
    weight = two_four(16, 32, torch.bfloat16, 0, 0.0)
    assert sum(part.nbytes for part in pack(weight)) == weight.nbytes * 9 / 16


def test_packing_takes_a_view_with_other_strides() -> None:
    weight = two_four(8, 4, torch.float32, 1, 0.0)
    assert torch.equal(unpack(*pack(weight.t().contiguous().t())), weight)


def test_signs_not_a_number_and_infinity_are_kept() -> None:
    weight = torch.tensor([[float("nan"), 0, 0, -1.5, float("-inf"), 0, 2, 0]])
    torch.testing.assert_close(unpack(*pack(weight)), weight, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(
    ("weight", "found"),
    [
        ([[1, 1, 0, 0, 0, 0, 2, 2]], True),
        ([[0, 1, 1, 0, 0, 0, 0, 0]], True),
        ([[1, 1, 1, 0, 0, 0, 0, 0]], False),
        ([[0, 0, 1, 1], [1, 1, 1, 1]], False),
        ([[0, 0, 1, 1, 1, 0]], False),  # six columns
    ],
)
def test_two_of_every_four_in_a_row_have_to_be_zero(weight: list[list[float]], found: bool) -> None:
    assert is_two_four(torch.tensor(weight, dtype=torch.float32)) is found


def test_a_stack_of_matrices_and_an_empty_one_are_not_2_4() -> None:
    assert not is_two_four(torch.zeros(2, 4, 4))
    assert not is_two_four(torch.zeros(0, 4))


@pytest.mark.parametrize("columns", [1, 3])
def test_places_that_do_not_belong_to_the_values_are_refused(columns: int) -> None:
    values, _ = pack(two_four(2, 4, torch.float32, 0, 0.0))
    with pytest.raises(ValueError, match="the file is damaged"):
        unpack(values, torch.zeros(2, columns, dtype=torch.uint8))
