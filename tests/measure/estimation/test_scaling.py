from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from loraprune import EstimateConfig, PruningConfig
from loraprune.checkpoint.shapes import find_shapes
from loraprune.measure.estimation.cluster import ClusterConfig
from loraprune.measure.estimation.estimate import Estimator
from loraprune.measure.estimation.gpus import CONTEXT, FRAGMENTED, GIB, GPUS, Gpu
from loraprune.measure.estimation.scaling import GpuScaling, scale
from loraprune.measure.estimation.several_gpus import COMMUNICATOR, chosen_strategy, memory_of, time_of, traffic_of
from loraprune.measure.estimation.summed_evidence import evidence_bytes
from loraprune.structure.describe import describe
from loraprune.tasks.options import LoraOptions


def card(name: str) -> Gpu:
    (gpu,) = [gpu for gpu in GPUS if gpu.name.startswith(f"{name} ")]
    return gpu


H100 = card("H100")


@pytest.fixture(scope="module")
def small() -> Estimator:
    return Estimator(find_shapes("llama-3.2-1b"), EstimateConfig(batch_size=2))


def holding(memory: float) -> Gpu:
    """An H100 with so many GiB for tensors."""
    return replace(H100, memory=(memory + CONTEXT + COMMUNICATOR) / (1 - FRAGMENTED))


def on(estimator: Estimator, gpus: int, nodes: int = 1, gpu: Gpu = H100, **further: Any) -> GpuScaling:
    (kind,) = scale(estimator, ClusterConfig(gpus=gpus, nodes=nodes, **further), gpus=(gpu,)).kinds
    return kind


@pytest.mark.full
def test_under_ddp_each_gpu_holds_all_and_a_copy_of_the_gradients(small: Estimator) -> None:
    size, alone = small.run_size(processes=8), small.estimate().memory
    memory = memory_of(size, "ddp", 8)
    trained = alone.adapter / 16  # a number, its gradient and two of the optimizer, in 32 bits
    assert size.before.gradients == pytest.approx(4 * trained)
    assert memory.step == pytest.approx(alone.step + 4 * trained)
    assert (memory.base, memory.gathered) == (alone.weights, 0.0)
    assert memory_of(size, "ddp", 1).step == pytest.approx(alone.step)


def test_under_fsdp2_the_base_is_shared_out_and_nothing_else(small: Estimator) -> None:
    size = small.run_size(processes=4)
    ddp, fsdp2 = memory_of(size, "ddp", 4), memory_of(size, "fsdp2", 4)
    base = size.before.base
    buffers = size.memory.weights - base.nbytes
    assert fsdp2.base == pytest.approx(base.nbytes / 4 + buffers)
    block = 2 * (2 * 2048 * 2048 + 2 * 2048 * 512 + 3 * 2048 * 8192 + 2 * 2048)
    assert fsdp2.gathered == 2 * block + 2 * (128256 * 2048 + 2048)
    assert ddp.step - fsdp2.step == pytest.approx(ddp.base - fsdp2.base - fsdp2.gathered)
    assert all(getattr(ddp, name) == getattr(fsdp2, name) for name in ("adapter", "averaging", "activations"))


def test_each_process_refits_on_its_part_of_the_calibration_data(small: Estimator) -> None:
    one, eight = (small.run_size(processes=count).memory.cut for count in (1, 8))
    hidden_states = 128 * 1024 * 2048 * 2
    assert one - eight == pytest.approx(2 * hidden_states * 7 / 8)  # and outputs of attention that is already cut
    assert small.run_size(processes=256).memory.cut == one  # fewer sequences than processes


def test_gradients_are_sent_once_a_step_and_the_base_for_each_micro_batch(small: Estimator) -> None:
    size = small.run_size(processes=4)
    ring = ClusterConfig(gpus=4).ring(H100.link)
    ddp, one, two = (
        traffic_of(size.before, strategy, ring, micro_batches=count, evidence=size.evidence)
        for strategy, count in (("ddp", 2), ("fsdp2", 1), ("fsdp2", 2))
    )
    assert ddp.base == 0.0
    assert ddp.gradients == one.gradients == two.gradients == 2 * 0.75 * size.before.gradients
    assert two.base == 2 * one.base
    base = size.before.base
    assert one.base == pytest.approx(0.75 * (2 * base.nbytes - base.outside.nbytes))
    # Squared gate gradients of 8 KV heads and 8192 channels of 16 blocks, and the number of sequences.
    assert one.evidence == 2 * 0.75 * 4 * 16 * (8 + 1 + 8192 + 1)


def test_gathers_hide_behind_computing_as_far_as_it_goes(small: Estimator) -> None:
    size = small.run_size(processes=8)
    fast, slow = (ClusterConfig(gpus=8, node_bandwidth=speed) for speed in (450.0, 1.0))
    hidden = time_of(size.before, "fsdp2", H100, fast.ring(H100.link))
    assert hidden.computing < hidden.step < hidden.computing + 0.5 * hidden.communication
    bare = time_of(size.before, "fsdp2", H100, slow.ring(H100.link))
    assert bare.communication == pytest.approx(450 * hidden.communication, rel=0.1)
    assert bare.communication <= bare.step < bare.communication + 0.1 * bare.computing


def test_ddp_is_chosen_where_one_gpu_holds_the_run_and_fsdp2_elsewhere(small: Estimator) -> None:
    size = small.run_size(processes=8)
    whole, shared = (memory_of(size, name, 8).peak / GIB for name in ("ddp", "fsdp2"))
    assert shared < whole
    large, between = holding(whole * 1.01), holding((whole + shared) / 2)
    assert chosen_strategy(size, large, 8, None, None) == ("ddp", "one GPU holds the whole run")
    assert chosen_strategy(size, between, 8, None, None) == ("fsdp2", "one GPU does not hold the whole run")
    strategy, reason = chosen_strategy(size, between, 8, "ddp", None)
    assert (strategy, reason) == ("ddp", "requested; one GPU does not hold the whole run")
    strategy, reason = chosen_strategy(size, between, 8, None, "bnb-8bit")
    assert (strategy, reason.partition(", ")[2]) == ("ddp", "and a quantized base cannot be sharded")
    assert on(small, 8, gpu=between).fit.fits
    assert on(small, 8, gpu=large).fit.strategy == "ddp"


@pytest.mark.full
def test_more_gpus_or_lighter_options_are_named_where_they_help(small: Estimator) -> None:
    tight = holding(memory_of(small.run_size(processes=2), "fsdp2", 2).peak / GIB - 0.01)
    two = on(small, 2, gpu=tight)
    assert not two.fit.fits
    assert two.fits_from == 4
    assert on(small, 4, gpu=tight).fit.fits
    assert two.remedy == "--per-device-train-batch-size 1 --gradient-accumulation-steps 2 --lora-r 8"
    run = {"batch_size": 1, "gradient_accumulation_steps": 2, "lora": LoraOptions(r=8)}
    lighter = Estimator(find_shapes("llama-3.2-1b"), EstimateConfig(**run))  # type: ignore[arg-type]
    assert on(lighter, 2, gpu=tight).fit.fits
    assert on(small, 4, gpu=tight, strategy="ddp").remedy == "--strategy fsdp2"
    assert on(small, 2, gpu=holding(1.0)).remedy is None  # its part of the base alone is too much


def test_it_is_told_where_sending_takes_longer_than_computing(small: Estimator) -> None:
    slow = {"node_bandwidth": 100.0, "network_bandwidth": 0.05}
    found = on(small, 8, nodes=2, **slow).fit
    assert found.time.communication > found.time.computing
    assert found.outgrown_at == 16
    assert on(small, 8, nodes=1, node_bandwidth=0.001).fit.outgrown_at == 2
    within = on(small, 8).fit
    assert within.least_tokens == pytest.approx(2 * 1024 * within.time.communication / within.time.computing)


def test_tokens_of_all_gpus_count(small: Estimator) -> None:
    cluster = ClusterConfig(gpus=8, nodes=2)
    found = scale(small, cluster, gpus=(H100,))
    (kind,) = found.kinds
    assert found.tokens == 16 * 2 * 1024
    assert kind.fit.tokens_a_second == pytest.approx(found.tokens / kind.fit.time.step)
    assert kind.fit.tokens_after > kind.fit.tokens_a_second
    assert kind.fit.usable == H100.usable - COMMUNICATOR * GIB


def test_taylor_keeps_and_adds_up_whole_gradients_where_there_are_other_processes() -> None:
    estimator = Estimator(
        find_shapes("llama-3.2-1b"), EstimateConfig(batch_size=1, pruning=PruningConfig(criterion="taylor"))
    )
    alone, together = (estimator.run_size(processes=count) for count in (1, 2))
    weights = 16 * (2 * 2048 * 2048 + 2 * 2048 * 512 + 3 * 2048 * 8192)
    assert together.evidence == 4 * weights
    # In bfloat16, beside what one process keeps.
    assert together.memory.step - alone.memory.step == pytest.approx(2 * weights, rel=0.15)


@pytest.mark.parametrize(
    ("criterion", "expected"),
    [
        ("lora", 0),
        ("magnitude", 0),
        ("fisher", 4 * 16 * (8 + 1 + 8192 + 1)),
        ("wanda", 16 * 8 * (2 * 2048 + 1 + 2 * 8192 + 1)),
        ("vectorize", 16 * 4 * (2048 + 2 * 512 + 2048 + 3 * 8192)),
    ],
)
def test_what_a_criterion_adds_up(criterion: str, expected: int) -> None:
    form = {"criterion": "taylor", "taylor_form": criterion} if criterion == "vectorize" else {"criterion": criterion}
    shapes = find_shapes("llama-3.2-1b").shapes
    assert evidence_bytes(PruningConfig(**form).criterion, shapes, describe(shapes)) == expected
