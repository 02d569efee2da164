"""The arithmetic of a one-shot run against operations that torch counts while one is made."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM

from loraprune import OneshotConfig
from loraprune.calibration import least_squares
from loraprune.measure.estimation.gpus import GPUS
from loraprune.measure.estimation.links import Ring
from loraprune.measure.estimation.oneshot_time import oneshot_time
from loraprune.measure.estimation.oneshot_work import FITS, OneshotWork, oneshot_work
from loraprune.pruning.groups import Groups
from loraprune.pruning.oneshot import prune_
from loraprune.structure.describe import describe

TOKENS = 32


def small_llama() -> Any:
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "vocab_size": 64}
    heads = {"num_attention_heads": 8, "num_key_value_heads": 4}
    special = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**sizes, **heads, **special, attn_implementation="sdpa")).eval()


def _factor(shape: Any, *_: Any, **__: Any) -> float:
    return math.prod(shape[:-2]) * shape[-1] ** 3 / 3


COUNTED = {
    torch.ops.aten.linalg_cholesky_ex: _factor,
    torch.ops.aten.cholesky_inverse: lambda shape, *_, **__: 2 * shape[-1] ** 3 / 3,
    torch.ops.aten.cholesky_solve: lambda right, factor, *_, **__: 2 * factor[-1] ** 2 * right[-1],
    torch.ops.aten.linalg_solve_triangular: lambda left, right, *_, **__: math.prod(left[:-1]) * left[-1] * right[-1],
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda query, key, *_, **__: (
        4 * math.prod(query) * key[-2]
    ),
    torch.ops.aten.addmm_: lambda _, left, right, *__, **___: 2 * left[0] * left[1] * right[1],
}
"""Operations that torch does not count of itself."""

ENOUGH = 24
"""Sequences with more tokens than any repair asks for."""


@pytest.fixture(params=[64, 16], ids=["ridges tried on all outputs", "ridges tried on sums of outputs"])
def outputs_tried(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(least_squares, "OUTPUTS_TRIED", request.param)
    tried: int = request.param
    return tried


@cache
def counted(sequences: int, outputs_tried: int) -> tuple[float, OneshotWork]:
    """Operations of a run on so many sequences, and what is said of them."""
    model = small_llama()
    structure, config = describe(model), OneshotConfig(ratio=0.5, allocation="uniform")
    groups = Groups.all_of(structure, config.target, config.criterion)
    data = [torch.randint(64, (TOKENS,)) for _ in range(sequences)]
    with FlopCounterMode(display=False, custom_mapping=COUNTED) as counter:
        prune_(model, groups, data, repair=config.repair)
    counts = {dimension.name: groups.plan.count(dimension.name) for dimension in structure}
    work = oneshot_work(small_llama(), structure, counts, sequences=sequences, tokens=TOKENS)
    assert work is not None
    return counter.get_total_flops(), work


@pytest.mark.full
def test_what_grows_with_the_data_is_shared_and_the_rest_is_solved_by_each_process(outputs_tried: int) -> None:
    (few, said_of_few), (many, said_of_many) = (counted(n * ENOUGH, outputs_tried) for n in (1, 2))
    assert many - few == pytest.approx(said_of_few.passes + said_of_few.moments, rel=0.01)
    assert 2 * few - many == pytest.approx(said_of_few.solves + said_of_few.tried, rel=0.03)
    assert said_of_many.solves == said_of_few.solves


@pytest.mark.full
def test_as_much_is_solved_on_few_tokens(outputs_tried: int) -> None:
    flops, said = counted(6, outputs_tried)
    assert flops == pytest.approx(said.passes + said.moments + said.solves + said.tried, rel=0.03)
    assert (said.solves, said.tried) == (
        counted(ENOUGH, outputs_tried)[1].solves,
        counted(ENOUGH, outputs_tried)[1].tried,
    )


def test_moments_of_both_halves_are_added_up() -> None:
    model = small_llama()
    structure = describe(model)
    half = {dimension.name: dimension.num_groups // 2 for dimension in structure}
    work = oneshot_work(model, structure, half, sequences=4, tokens=8)
    assert work is not None
    # Two halves of the rows: moments in 32 bits, and their products with the target; sums, squares and numbers in 64.
    singles = sum(2 * (inputs**2 + 64 * inputs) for inputs in (64, 128))
    doubles = sum(2 * (2 * inputs + 1 + 1) for inputs in (64, 128))
    assert work.summed == 2 * (4 * singles + 8 * doubles)
    assert work.sums == 2 * 2 * 2 * 4


def test_the_speed_up_ends_at_what_is_not_shared() -> None:
    (gpu,) = [gpu for gpu in GPUS if gpu.name == "H100 80 GB"]
    work = OneshotWork(passes=3e15, moments=1e15, solves=1e14, summed=0.0, sums=0)
    times = [oneshot_time(work, gpu, Ring(gpus=n, nodes=1, within=1, between=1, hop=0), 128) for n in (1, 8, 128)]
    alone = times[0].alone
    assert times[0].total == times[0].shared + alone
    assert times[1].total == pytest.approx(times[0].shared / 8 + alone)
    assert 1.0 == times[0].speed_up < times[1].speed_up < times[2].speed_up < times[2].limit
    ridges = OneshotWork(passes=0.0, moments=0.0, solves=1e14, tried=7e14, summed=0.0, sums=0)
    one, two, many = (
        oneshot_time(ridges, gpu, Ring(gpus=n, nodes=1, within=1, between=1, hop=0), 128) for n in (1, 2, 128)
    )
    tried = 7e14 / FITS  # of one fit
    assert one.total / two.total == pytest.approx((1e14 + 7e14) / (1e14 + -(-FITS // 2) * tried))
    assert many.speed_up == pytest.approx(many.limit)
    # With fewer sequences than processes, each looks at all of them.
    assert oneshot_time(work, gpu, Ring(gpus=8, nodes=1, within=1, between=1, hop=0), 7).speed_up == 1.0
