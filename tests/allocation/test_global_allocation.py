"""The allocation ``global``: the cheapest groups of all layers go, down to a floor, until the ratio is met."""

from __future__ import annotations

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from tests.allocation.test_allocate import RATIOS, cases, random_scores, structure_of
from tests.models import tiny_model

from loraprune.allocation.allocate import allocate, check_reachable
from loraprune.allocation.global_allocation import FLOOR, allocate_globally, floor_of, smallest_share
from loraprune.structure.describe import describe
from loraprune.structure.plan import Plan
from loraprune.structure.widths import LegalWidths, legal_widths


def finest_step(structure, legal):
    """Parameters of one channel multiple in the layer where it has most."""
    return max(legal.multiples["channels"] * d.parameters_per_group for d in structure.of_kind("channels"))


@given(case=cases(), ratio=RATIOS, seed=st.integers(0, 99))
def test_the_ratio_is_met_to_the_finest_step_and_every_dimension_keeps_its_floor(case, ratio, seed):
    structure, legal = case
    assume(ratio <= 1 - smallest_share(structure, legal))
    full = Plan.full(structure)
    plan = allocate(structure, full, random_scores(structure, full, seed), ratio, legal, "global")
    for dimension in structure:
        assert plan.count(dimension.name) >= floor_of(dimension, legal.multiples.get(dimension.kind, 1))
        assert plan.count(dimension.name) >= FLOOR * dimension.num_groups
    channels_open = any(
        plan.count(d.name) - legal.multiples["channels"] >= floor_of(d, legal.multiples["channels"])
        for d in structure.of_kind("channels")
    )
    error = plan.removed_parameters(structure) - ratio * structure.prunable_parameters
    if channels_open:  # otherwise heads are the finest step that is left
        assert abs(error) <= finest_step(structure, legal)


@given(case=cases(), ratio=RATIOS, seed=st.integers(0, 99))
def test_the_most_important_groups_of_every_dimension_stay(case, ratio, seed):
    structure, legal = case
    full = Plan.full(structure)
    scores = random_scores(structure, full, seed)
    plan = allocate(structure, full, scores, ratio, legal, "global")
    for dimension in structure:
        values = scores[dimension.name]
        gone = set(range(dimension.num_groups)) - set(plan.kept[dimension.name])
        kept = min(values[group].item() for group in plan.kept[dimension.name])
        assert max((values[group].item() for group in gone), default=-1.0) <= kept


def test_groups_go_in_the_order_of_their_importance_per_parameter():
    structure = describe(tiny_model())
    legal = LegalWidths(counts={"heads": (1, 2, 3, 4)}, multiples={"channels": 1})
    # A head has 768 parameters and a channel 96: 8 channels cost what a head costs.
    scores = {d.name: torch.ones(d.num_groups) for d in structure}
    scores["layers.1.heads"] = torch.tensor([1.0, 5.0, 5.0, 5.0])
    scores["layers.0.heads"] = torch.tensor([9.0, 9.0, 9.0, 9.0])
    plan = allocate_globally(structure, Plan.full(structure), scores, 768 / 10752, legal, scale="loss")
    assert plan.kept["layers.1.heads"] == (1, 2, 3)
    assert plan.count("layers.0.channels") == plan.count("layers.1.channels") == 24
    # One head more is worth 5 / 768 a parameter, less than 1 / 96 for a channel: the second head goes next.
    plan = allocate_globally(structure, Plan.full(structure), scores, 2 * 768 / 10752, legal, scale="loss")
    assert plan.count("layers.1.heads") == 2


def test_scores_without_a_common_unit_are_compared_within_their_dimension():
    structure = describe(tiny_model())
    legal = LegalWidths(counts={"heads": (1, 2, 3, 4)}, multiples={"channels": 1})
    generator = torch.Generator().manual_seed(0)
    scores = {d.name: torch.rand(d.num_groups, generator=generator) for d in structure}
    scaled = {name: value * (1e-3 if name.endswith("channels") else 1e3) for name, value in scores.items()}
    full = Plan.full(structure)
    plans = [
        [allocate_globally(structure, full, values, 0.4, legal, scale=flag) for values in (scores, scaled)]
        for flag in ("own", "loss")
    ]
    assert plans[0][0] == plans[0][1]
    assert plans[1][0] != plans[1][1]


def test_protected_layers_keep_everything_and_the_others_lose_more():
    structure = describe(tiny_model(num_hidden_layers=3), keep_layers=[0, -1])
    legal, full = legal_widths(structure), Plan.full(structure)
    scores = random_scores(structure, full, 0)
    for allocation in ("balanced", "uniform", "global"):
        plan = allocate(structure, full, scores, 0.25, legal, allocation)
        for layer in (0, 2):
            assert plan.count(f"layers.{layer}.heads") == 4
            assert plan.count(f"layers.{layer}.channels") == 24
        assert plan.ratio(structure) == pytest.approx(0.25, abs=0.01)


def test_a_ratio_that_the_floors_do_not_allow_is_refused_with_what_can_be_reached():
    structure = describe(tiny_model())
    legal = legal_widths(structure)
    # One of four heads and three of 24 channels stay.
    most = 1 - (768 + 3 * 96) / (4 * 768 + 24 * 96)
    with pytest.raises(ValueError, match=rf"0\.95 would empty a dimension: .* at most {most:.4f}"):
        check_reachable(structure, 0.95, legal, "global")
    check_reachable(structure, most - 1e-6, legal, "global")


def test_protected_layers_count_in_what_can_be_reached():
    structure = describe(tiny_model(), keep_layers=[0])
    for allocation in ("balanced", "global"):
        with pytest.raises(ValueError, match=r"0\.6 would empty a dimension"):
            check_reachable(structure, 0.6, legal_widths(structure), allocation)


def test_layers_of_different_widths_lose_the_same_share_beside_a_wider_protected_one():
    structure = describe(tiny_model(num_hidden_layers=3), keep_layers=[0])
    sizes = {"layers.1.channels": 20, "layers.2.channels": 10}
    structure = structure.shrunk(sizes)
    legal = legal_widths(structure)
    plan = Plan.full(structure)
    for ratio in (0.1, 0.2, 0.3):
        scores = random_scores(structure, plan, 0)
        plan = allocate(structure, plan, scores, ratio, legal, "uniform", final_ratio=0.3)
    assert plan.count("layers.0.channels") == 24
    assert plan.ratio(structure) == pytest.approx(0.3, abs=0.01)
    shares = [plan.count(name) / size for name, size in sizes.items()]
    assert shares[0] == pytest.approx(shares[1], abs=0.06)


def ranked_plan(structure, scores, parameters, multiple=1):
    legal = LegalWidths(counts={"heads": (1, 2, 3, 4)}, multiples={"channels": multiple})
    ratio = parameters / structure.prunable_parameters
    return allocate(structure, Plan.full(structure), scores, ratio, legal, "global", scale="rank")


@given(seed=st.integers(0, 99), channels=st.integers(1, 42))
def test_ranked_groups_go_in_the_order_of_their_scores_as_long_as_a_floor_allows_it(seed, channels):
    structure = structure_of("llama", 4, 2, 4, 24, 3)
    scores = {d.name: 10 + 0 * torch.arange(d.num_groups) for d in structure}  # heads go last
    generator = torch.Generator().manual_seed(seed)
    of_channels = structure.of_kind("channels")
    for number, d in enumerate(of_channels):  # the first layer has the lowest ones; half of all are negative
        scores[d.name] = torch.randn(24, generator=generator) + 0.5 * number - 0.5
    each = of_channels[0].parameters_per_group
    queue = sorted((value, d.name, group) for d in of_channels for group, value in enumerate(scores[d.name].tolist()))
    left = {d.name: set(range(24)) for d in of_channels}
    wanted = channels
    for _, name, group in queue:
        if wanted and len(left[name]) > 3:  # a tenth of 24, rounded up
            left[name].remove(group)
            wanted -= 1
    plan = ranked_plan(structure, scores, channels * each)
    assert {name: set(plan.kept[name]) for name in left} == left
    assert all(plan.count(d.name) == 4 for d in structure.of_kind("heads"))


def test_ranked_heads_and_channels_go_by_their_scores_whatever_their_size():
    structure = describe(tiny_model())  # a head has 768 parameters, a channel 96
    scores = {d.name: torch.linspace(-1.0, 1.0, d.num_groups) for d in structure}
    scores["layers.1.heads"] = torch.tensor([3.0, -2.0, 2.0, 2.5])
    plan = ranked_plan(structure, scores, 768)
    assert plan.kept["layers.1.heads"] == (0, 2, 3)
    assert plan.ratio(structure) == pytest.approx(768 / 10752)
    scores["layers.1.heads"][1] = -0.99  # now after the first channel of each layer, and the head of the other one
    plan = ranked_plan(structure, scores, 2 * 768 + 2 * 96)
    assert plan.kept["layers.0.heads"] == (1, 2, 3)
    assert plan.kept["layers.1.heads"] == (0, 2, 3)
    assert plan.kept["layers.0.channels"] == plan.kept["layers.1.channels"] == tuple(range(1, 24))


def test_a_ranked_step_of_several_groups_counts_by_their_mean():
    structure = describe(tiny_model())
    scores = {d.name: torch.full((d.num_groups,), 5.0) for d in structure}
    scores["layers.0.channels"][:2] = torch.tensor([-4.0, 1.0])  # on average -1.5
    scores["layers.1.channels"][:2] = torch.tensor([-1.0, -1.0])
    plan = ranked_plan(structure, scores, 2 * 96, multiple=2)
    assert plan.kept["layers.0.channels"] == tuple(range(2, 24))
    scores["layers.0.channels"][1] = 3.0  # now -0.5
    plan = ranked_plan(structure, scores, 2 * 96, multiple=2)
    assert plan.kept["layers.1.channels"] == tuple(range(2, 24))


def test_strata_make_no_difference_to_the_rank_of_a_step():
    structure = describe(tiny_model(), ("query_heads", "channels"))  # one query head of each of 4 KV heads at a time
    scores = {d.name: torch.full((d.num_groups,), 9.0) for d in structure}
    scores["layers.0.query_heads"][::2] = 0.5
    scores["layers.1.channels"][:8] = 1.0
    heads = 4 * structure.of_kind("query_heads")[0].parameters_per_group
    plan = ranked_plan(structure, scores, heads)
    assert plan.kept["layers.0.query_heads"] == (1, 3, 5, 7)
    assert plan.count("layers.1.channels") == 24
    scores["layers.0.query_heads"][::2] = 1.5
    plan = ranked_plan(structure, scores, 8 * 96)
    assert plan.count("layers.0.query_heads") == 8
    assert plan.kept["layers.1.channels"] == tuple(range(8, 24))


def test_a_ranking_needs_no_scores_above_zero(model):
    structure = describe(model)
    scores = {d.name: -1.0 - torch.rand(d.num_groups) for d in structure}
    plan = ranked_plan(structure, scores, structure.prunable_parameters // 2)
    assert plan.ratio(structure) == pytest.approx(0.5, abs=0.01)
    shifted = {name: values + 10 for name, values in scores.items()}
    assert ranked_plan(structure, shifted, structure.prunable_parameters // 2) == plan
