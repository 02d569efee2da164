"""What is said of a sharded base against a base that torch's FSDP2 has sharded."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist
from tests.measure.estimation.sharded import sharded_step, small_llama

from loraprune.measure.estimation.frozen_base import FrozenBase, frozen_base
from loraprune.measure.estimation.links import Ring
from loraprune.measure.estimation.run_size import TrainedModel
from loraprune.measure.estimation.several_gpus import traffic_of
from loraprune.structure.describe import describe

ROOT = Path(__file__).parents[3]


@pytest.fixture
def together(request: pytest.FixtureRequest) -> Iterator[int]:
    """Makes this process the first of several, of which the others are not there: shapes are those of all."""
    fake_pg = pytest.importorskip("torch.testing._internal.distributed.fake_pg")
    dist.init_process_group("fake", store=fake_pg.FakeStore(), rank=0, world_size=request.param)
    yield request.param
    dist.destroy_process_group()


def of_small_llama() -> FrozenBase:
    model = small_llama()
    return frozen_base(model, describe(model), 3)


def check(found: dict[str, Any], processes: int) -> None:
    """Every byte that is held or gathered is foreseen."""
    base = of_small_llama()
    blocks = [block.gathered(processes) for block in base.blocks]
    assert found["held"] == base.shard(processes)
    assert found["whole"] == sum(p.nbytes for p in small_llama().parameters() if p.requires_grad)
    assert found["forward"] == [base.outside.gathered(processes), *blocks]
    assert found["backward"] == blocks[::-1]
    assert not [name for name in found["others"] if "reduce_scatter" in name]
    ring = Ring(gpus=processes, nodes=1, within=1, between=1, hop=0)
    model = TrainedModel(base=base, gradients=0.0, flops=1.0, forward_flops=1.0)
    sent = (sum(found["forward"]) + sum(found["backward"])) * (processes - 1) / processes
    assert traffic_of(model, "fsdp2", ring).base == pytest.approx(sent)


@pytest.mark.parametrize("together", [2, 3, 8], indirect=True)
def test_shards_and_gathers_of_torch_are_those_that_are_foreseen(together: int) -> None:
    check(sharded_step(together), together)


@pytest.mark.full
@pytest.mark.slow
def test_two_processes_hold_and_gather_what_is_foreseen(tmp_path: Path) -> None:
    script = ROOT / "tests" / "measure" / "estimation" / "sharded.py"
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([*launch, str(script), str(tmp_path)], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    for rank in range(2):
        check(json.loads((tmp_path / f"{rank}.json").read_text()), 2)


def test_blocks_that_are_not_looked_at_are_as_the_second_one() -> None:
    model = small_llama()
    base = frozen_base(model, describe(model), 5)
    assert base.nbytes == of_small_llama().nbytes + 2 * base.blocks[1].nbytes
    # Embedding, head and last norm, in 16 bits.
    assert base.outside.nbytes == 2 * (2 * 131 * 64 + 64)
