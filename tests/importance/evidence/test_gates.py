from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from loraprune.importance.evidence.gate_squares import GateSquares, gate_gradients

DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")),
]


@pytest.mark.parametrize("device", DEVICES)
@given(
    batch=st.integers(1, 3),
    tokens=st.integers(1, 4),
    groups=st.integers(1, 5),
    segments=st.lists(st.integers(1, 3), min_size=1, max_size=3),
)
def test_the_gradient_of_a_gate_is_the_sum_of_input_times_gradient_over_tokens_and_features(
    device, batch, tokens, groups, segments
):
    owner = torch.tensor([group for size in segments for group in range(groups) for _ in range(size)])
    inputs = torch.randn(batch, tokens, len(owner), dtype=torch.float64)
    gradients = torch.randn_like(inputs)
    gates = torch.ones(batch, groups, dtype=torch.float64, requires_grad=True)
    (inputs * gates[:, None, owner] * gradients).sum().backward()
    actual = gate_gradients(inputs.to(device), gradients.to(device), tuple(segments))
    assert actual.dtype == torch.float32
    torch.testing.assert_close(actual.cpu().double(), gates.grad, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("device", DEVICES)
def test_half_precision_is_summed_in_32_bits(device):
    # In 16 bits 1 + 2^-10 would round to 1, and 4096 ones and more would not add up.
    inputs = torch.full((1, 5000, 2), 1.0, dtype=torch.bfloat16, device=device)
    assert gate_gradients(inputs, inputs, (1,)).tolist() == [[5000.0, 5000.0]]


def test_squares_are_averaged_over_the_sequences_of_all_micro_batches():
    squares = GateSquares((1,))
    ones = torch.ones(2, 1, 2)
    squares.add(ones, torch.tensor([[[1.0, 2.0]], [[3.0, 4.0]]]))
    squares.add(ones[:1], torch.tensor([[[5.0, -6.0]]]))
    assert squares.take().tolist() == pytest.approx([(1 + 9 + 25) / 3, (4 + 16 + 36) / 3])


def test_taking_the_mean_starts_anew():
    squares = GateSquares((1,))
    assert squares.take() is None
    squares.add(torch.ones(1, 1, 2), torch.ones(1, 1, 2))
    squares.take()
    assert squares.take() is None
    squares.add(torch.ones(1, 1, 2), torch.full((1, 1, 2), 3.0))
    assert squares.take().tolist() == [9.0, 9.0]
