from __future__ import annotations

import torch

from loraprune.measure.benchmark.memory import LiveBytes, peak_bytes, state_bytes, weight_bytes

CPU = torch.device("cpu")


def test_live_bytes_are_those_of_the_tensors_at_the_worst_moment() -> None:
    weight = torch.zeros(100)  # is there before, and counts once it is used
    unused = torch.zeros(10_000)

    def work() -> None:
        a = weight + 1  # 800 with the weight
        b = a + 1  # 1200
        del a
        c = b[:50].clone()  # 1000: a view is no new memory
        del b, c
        torch.zeros(50) + 1  # 800

    assert peak_bytes(work, CPU) == 1200
    assert len(unused) == 10_000


def test_live_bytes_return_to_what_is_left() -> None:
    with LiveBytes() as live:
        kept = torch.zeros(25) + 1
        torch.zeros(1000) + 1
    assert live.now == kept.untyped_storage().nbytes() == 100
    assert live.peak == 100 + 2 * 4000


def test_shared_weights_count_once_and_buffers_count() -> None:
    layer = torch.nn.Linear(8, 8, bias=False)
    layer.register_buffer("extra", torch.zeros(4))
    both = torch.nn.ModuleList([layer, torch.nn.Linear(8, 8, bias=False)])
    both[1].weight = layer.weight
    assert weight_bytes(both) == 8 * 8 * 4 + 4 * 4


def test_adam_keeps_two_numbers_a_parameter() -> None:
    layer = torch.nn.Linear(8, 8, bias=False)
    optimizer = torch.optim.AdamW(layer.parameters())
    layer(torch.ones(1, 8)).sum().backward()
    optimizer.step()
    assert state_bytes(optimizer) == 2 * 8 * 8 * 4 + 4  # and the number of steps
