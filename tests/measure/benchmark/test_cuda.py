"""What differs on an accelerator: waiting for it, and its allocator's count of memory."""

from __future__ import annotations

import pytest
import torch
from tests.checkpoints import byte_model
from tests.models import with_lora

from loraprune.measure.benchmark.bench import bench
from loraprune.measure.benchmark.config import BenchConfig
from loraprune.measure.benchmark.memory import peak_bytes, weight_bytes
from loraprune.measure.benchmark.random_inputs import InputSize, training_inputs
from loraprune.measure.benchmark.timing import TurnTaker, in_turns
from loraprune.measure.benchmark.training_step import TrainingStep, Work

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
MEGA = 1 << 20


def test_memory_is_what_a_call_allocates_beside_what_it_held() -> None:
    device = torch.device("cuda", 0)
    others = torch.zeros(64 * MEGA, device=device)
    found = peak_bytes(lambda: torch.zeros(8 * MEGA, device=device).sum(), device, held=1000)
    assert 8 * MEGA * 4 <= found - 1000 < 9 * MEGA * 4
    assert others.numel() == 64 * MEGA


def test_a_call_is_timed_until_the_device_is_done() -> None:
    from contextlib import contextmanager

    device = torch.device("cuda", 0)
    matrix = torch.randn(8192, 8192, device=device)

    @contextmanager
    def turn():  # type: ignore[no-untyped-def]
        yield lambda: [matrix @ matrix for _ in range(10)]

    times = in_turns({"only": TurnTaker(turn=turn, device=device)}, repeats=3, warmup=1)["only"]
    assert times.least > 10 * 2 * 8192**3 / 2e15  # no device does 2 petaflops in these dtypes


def test_a_benchmark_runs_on_the_device() -> None:
    dense, pruned = byte_model().cuda(), byte_model(intermediate_size=8).cuda()
    config = BenchConfig(repeats=2, warmup=1, new_tokens=2, decode_batch=(1, 2))
    result = bench({"dense": dense, "pruned": pruned}, config)
    assert result.machine["memory_counter"] == "the CUDA allocator"
    assert len(result.figures) == 6
    assert all((figure.peak_bytes or 0) > weight_bytes(pruned) for figure in result.figures)


def test_a_training_step_under_autocast_holds_weights_and_optimizer() -> None:
    model = with_lora(byte_model().cuda())
    batch = training_inputs(model.get_base_model(), InputSize(batch_size=2, tokens=16), torch.device("cuda", 0))
    step = TrainingStep(model, Work(batch, accumulation=2, autocast=torch.bfloat16))
    in_turns({"only": step.contender()}, repeats=1, warmup=1)
    assert step.peak_bytes() > weight_bytes(model)
