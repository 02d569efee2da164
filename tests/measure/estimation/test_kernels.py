from __future__ import annotations

import torch

from loraprune.measure.estimation.kernels import LiveShapes


def test_bytes_are_counted_while_tensors_live() -> None:
    held = torch.empty(10, device="meta")
    with LiveShapes([held, held.view(5, 2)]) as live:
        live.begin("first")
        assert live.now == 40
        made = held + 1
        view = made.view(2, 5)
        assert live.now == 80
        del made
        assert live.now == 80
        del view
        assert live.now == 40
        live.begin("second")
        held.add_(1)
    assert live.peaks == {"first": 80, "second": 40}
    assert live.starts == {"first": 40, "second": 40}


def test_operations_belong_to_the_segment_that_runs() -> None:
    a, b = torch.empty(3, 4, device="meta"), torch.empty(4, 5, device="meta")
    with LiveShapes() as live:
        live.begin("one")
        a @ b
        live.begin("other")
        a @ b
        a @ b
    assert live.flops == {"one": 2 * 3 * 4 * 5, "other": 2 * 2 * 3 * 4 * 5}
