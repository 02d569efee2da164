"""Quantized weights against numbers that are packed one by one, as the formats have them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from loraprune.checkpoint.exports.packed_numbers import (
    awq_weight,
    gptq_weight,
    pack_quantized_weight,
    scaled_weight,
    unpacked_words,
)

AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


def packed(numbers: Tensor, bits: int, dim: int, order: tuple[int, ...] | None = None) -> Tensor:
    """Words of 32 bits, each put together number by number."""
    along = numbers if dim == 1 else numbers.T
    a_word = 32 // bits
    places = order or tuple(range(a_word))
    rows = []
    for row in along.tolist():
        words = []
        for start in range(0, len(row), a_word):
            word = sum(row[start + places[i]] << (bits * i) for i in range(a_word) if start + places[i] < len(row))
            words.append(word - 2**32 if word >= 2**31 else word)
        rows.append(words)
    found = torch.tensor(rows, dtype=torch.int32)
    return found if dim == 1 else found.T


def drawn(high: int, *shape: int) -> Tensor:
    return torch.randint(0, high, shape, dtype=torch.int32)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("dim", [0, 1])
def test_numbers_come_out_as_they_went_in(bits: int, dim: int) -> None:
    numbers = drawn(2**bits, 32, 32)
    assert torch.equal(unpacked_words(packed(numbers, bits, dim), bits, dim), numbers)


@pytest.mark.parametrize("off_by_one", [True, False])
@pytest.mark.parametrize("shuffled", [True, False])
def test_gptq(off_by_one: bool, shuffled: bool) -> None:
    inputs, outputs, size = 32, 16, 8
    numbers, zeros, scales = drawn(16, inputs, outputs), drawn(15, inputs // size, outputs), torch.rand(4, outputs)
    groups = torch.arange(inputs) // size
    groups = groups[torch.randperm(inputs)] if shuffled else groups
    found = gptq_weight(
        packed(numbers, 4, 0),
        packed(zeros, 4, 1),
        scales,
        groups.int() if shuffled else None,
        bits=4,
        zeros_off_by_one=off_by_one,
    )
    for i in range(inputs):
        for o in range(outputs):
            expected = scales[groups[i], o] * (numbers[i, o] - zeros[groups[i], o] - int(off_by_one))
            assert found[o, i] == pytest.approx(float(expected))


def test_awq() -> None:
    numbers, zeros, scales = drawn(16, 32, 16), drawn(16, 4, 16), torch.rand(4, 16)
    found = awq_weight(packed(numbers, 4, 1, AWQ_ORDER), packed(zeros, 4, 1, AWQ_ORDER), scales)
    groups = torch.arange(32) // 8
    assert torch.allclose(found, (scales[groups] * (numbers - zeros[groups])).T)


@pytest.mark.parametrize("bits", [4, 8])
def test_packed_numbers_of_compressed_tensors(bits: int) -> None:
    pack = pytest.importorskip(
        "compressed_tensors.compressors.quantized_compressors.pack_quantized", reason="not installed"
    )
    middle, inputs = 2 ** (bits - 1), 20  # the last word is filled up
    numbers = (drawn(2 * middle, 16, inputs) - middle).to(torch.int8)
    zeros = (drawn(2 * middle, 16, 4) - middle).to(torch.int8)
    scales, groups = torch.rand(16, 4), torch.arange(inputs) // 5
    words: Callable[..., Tensor] = pack.pack_to_int32
    found = pack_quantized_weight(
        words(numbers, bits), scales, words(zeros, bits, packed_dim=0), None, bits=bits, inputs=inputs
    )
    assert torch.allclose(found, (numbers.float() - zeros.float()[:, groups]) * scales[:, groups])
    symmetric = pack_quantized_weight(words(numbers, bits), scales, None, None, bits=bits, inputs=inputs)
    assert torch.allclose(symmetric, numbers.float() * scales[:, groups])


@pytest.mark.parametrize("shape", [(), (1,), (6, 1), (6,), (3, 4), (2, 3)])
def test_scales_of_a_matrix_of_rows_and_of_blocks(shape: tuple[int, ...]) -> None:
    numbers, scales = torch.randn(6, 8).to(torch.float8_e4m3fn), torch.rand(shape)
    found = scaled_weight(numbers, scales)
    grid = scales.reshape(1, 1) if scales.numel() == 1 else scales.reshape(len(scales), -1)
    for row in range(6):
        for column in range(8):
            at = row // -(-6 // grid.shape[0]), column // -(-8 // grid.shape[1])
            assert found[row, column] == pytest.approx(float(numbers[row, column].float() * grid[at]))


def test_zero_points_of_integers() -> None:
    numbers, scales, zeros = drawn(100, 4, 6).to(torch.int8), torch.rand(4, 1), drawn(9, 4, 1).to(torch.int8)
    assert torch.allclose(scaled_weight(numbers, scales, zeros), (numbers.float() - zeros.float()) * scales)


def test_the_last_block_may_be_smaller() -> None:
    numbers, scales = torch.randn(6, 9).to(torch.float8_e4m3fn), torch.rand(2, 3)
    found = scaled_weight(numbers, scales, block=(4, 4))
    for row in range(6):
        for column in range(9):
            assert found[row, column] == pytest.approx(
                float(numbers[row, column].float() * scales[row // 4, column // 4])
            )
