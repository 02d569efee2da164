from __future__ import annotations

import pytest

from loraprune.measure.estimation.cluster import ClusterConfig
from loraprune.measure.estimation.gpus import GPUS
from loraprune.measure.estimation.links import COLLECTIVE_SHARE, LAUNCH, NETWORK_HOP, NVLINK_4, PCIE_4, Ring

ONE_NODE = Ring(gpus=8, nodes=1, within=450, between=400, hop=3.4e-6)


def test_a_gather_sends_all_but_the_own_part_in_one_step_less_than_there_are_processes() -> None:
    assert ONE_NODE.sent(8e9) == 7e9
    seconds = 7e9 / (450e9 * COLLECTIVE_SHARE) + LAUNCH + 7 * 3.4e-6
    assert ONE_NODE.gather_seconds(8e9) == pytest.approx(seconds)


def test_a_sum_goes_round_twice() -> None:
    seconds = 2 * 7e9 / (450e9 * COLLECTIVE_SHARE) + LAUNCH + 14 * 3.4e-6
    assert ONE_NODE.sum_seconds(8e9) == pytest.approx(seconds)


def test_the_slowest_part_of_a_ring_counts() -> None:
    several = Ring(gpus=8, nodes=4, within=450, between=400, hop=3.4e-6)
    assert several.bandwidth == 400e9 * COLLECTIVE_SHARE
    assert Ring(gpus=8, nodes=4, within=32, between=400, hop=1e-6).bandwidth == 32e9 * COLLECTIVE_SHARE
    assert Ring(gpus=1, nodes=4, within=32, between=400, hop=1e-6).bandwidth == 400e9 * COLLECTIVE_SHARE
    assert several.gather_seconds(0.0) == pytest.approx(LAUNCH + 28 * 3.4e-6 + 3 * NETWORK_HOP)


def test_one_process_sends_nothing() -> None:
    alone = Ring(gpus=1, nodes=1, within=450, between=400, hop=1e-6)
    assert (alone.sent(1e9), alone.gather_seconds(1e9), alone.sum_seconds(1e9)) == (0.0, 0.0, 0.0)


def test_each_gpu_with_nvlink_has_an_adapter_and_other_nodes_have_one() -> None:
    assert NVLINK_4.between(4) == 200
    assert PCIE_4.between(4) == 12.5
    assert {gpu.name: gpu.link.name for gpu in GPUS}["A100 80 GB"] == "NVLink 3"


def test_bandwidths_that_are_given_count() -> None:
    ring = ClusterConfig(gpus=4, nodes=2, node_bandwidth=20, network_bandwidth=10).ring(NVLINK_4)
    assert (ring.within, ring.between, ring.processes) == (20, 10, 8)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"gpus": 0}, "gpus is 0"),
        ({"nodes": -1}, "nodes is -1"),
        ({"gpus": 2, "strategy": "fsdp"}, "choose one of ddp, fsdp2"),
        ({"strategy": "ddp"}, "You passed strategy, and there is one GPU"),
        ({"gpus": 2, "node_bandwidth": 0.0}, "node_bandwidth is 0"),
        ({"gpus": 2, "network_bandwidth": 5.0}, "there is one node"),
        ({"nodes": 2, "node_bandwidth": 5.0}, "each node has one GPU"),
    ],
)
def test_gpus_that_cannot_be_are_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ClusterConfig(**values)  # type: ignore[arg-type]


def test_a_quantized_base_cannot_be_shared_out() -> None:
    ClusterConfig(gpus=2).check("bnb-4bit", "cuda")
    with pytest.raises(ValueError, match=r"quantized \(bnb-4bit\).* Choose ddp"):
        ClusterConfig(gpus=2, strategy="fsdp2").check("bnb-4bit", "cuda")
    with pytest.raises(ValueError, match="several GPUs share the run"):
        ClusterConfig(gpus=2).check(None, "cpu")
