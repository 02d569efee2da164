from __future__ import annotations

import pytest

from loraprune.measure.estimation.gpus import BANDWIDTH_SHARE, GIB, GPUS, UTILIZATION, Gpu, step_seconds
from loraprune.measure.estimation.links import PCIE_4

CARD = Gpu(name="card", memory=10.0, tflops=100, bandwidth=1000, single=20, link=PCIE_4)


def test_a_card_has_less_to_give_than_its_driver_reports() -> None:
    assert CARD.usable == pytest.approx(8.5 * GIB)


def test_cards_are_listed_by_memory_under_names_of_their_own() -> None:
    assert len({gpu.name for gpu in GPUS}) == len(GPUS)
    sizes = [int(gpu.name.split()[-2]) for gpu in GPUS]
    assert sizes == sorted(sizes)
    # What the driver reports is near what is printed on the box, and never more.
    assert all(0.9 * size <= gpu.memory <= size for size, gpu in zip(sizes, GPUS, strict=True))


def test_time_is_arithmetic_over_a_share_of_the_peak_and_traffic_over_a_share_of_the_bandwidth() -> None:
    assert step_seconds(1e14, CARD) == pytest.approx(1 / UTILIZATION)
    more = step_seconds(1e14, CARD, dequantized=1e12) - step_seconds(1e14, CARD)
    assert more == pytest.approx(2 / BANDWIDTH_SHARE)
