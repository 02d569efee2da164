from __future__ import annotations

import functools
from fractions import Fraction

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tests.models import tiny_config, tiny_model
from transformers import AutoModelForCausalLM

from loraprune.allocation.allocate import HEAD_MARGIN, allocate, check_reachable, ratio_for_parameters
from loraprune.structure.describe import describe
from loraprune.structure.plan import Plan
from loraprune.structure.widths import LegalWidths, legal_widths


@functools.cache
def structure_of(family, kv_heads, queries, head_dim, channels, layers):
    hidden = 4 * kv_heads * queries
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(
            tiny_config(
                family,
                hidden_size=hidden,
                num_attention_heads=kv_heads * queries,
                num_key_value_heads=kv_heads,
                head_dim=head_dim,
                intermediate_size=channels,
                num_hidden_layers=layers,
            )
        )
    return describe(model, ("heads", "channels"))


@st.composite
def cases(draw):
    """A structure and legal widths for it."""
    structure = structure_of(
        draw(st.sampled_from(["llama", "qwen2"])),
        draw(st.sampled_from([1, 2, 4, 6, 8])),
        draw(st.sampled_from([1, 2, 3])),
        draw(st.sampled_from([4, 6])),
        draw(st.sampled_from([20, 64, 100, 172])),
        draw(st.sampled_from([1, 3])),
    )
    return structure, legal_widths(structure, channel_multiple=draw(st.sampled_from([1, 4, 8, 16])))


ALLOCATIONS = ("balanced", "uniform")  # those with the same widths in every layer
RATIOS = st.floats(0.02, 0.98)


def random_scores(structure, plan, seed):
    generator = torch.Generator().manual_seed(seed)
    return {d.name: torch.rand(plan.count(d.name), generator=generator) ** 3 for d in structure}


def per_group(structure, kind):
    return sum(d.parameters_per_group for d in structure if d.kind == kind)


def step_size(structure, legal):
    """One channel multiple in every layer, in parameters: the finest step of a uniform plan."""
    return legal.channel_multiple * per_group(structure, "channels")


def widths_that_meet(structure, ratio, legal):
    """All legal pairs of widths within half a step of the target, by trying each."""
    dense = {d.kind: d.num_groups for d in structure}
    multiples = {*range(legal.channel_multiple, dense["channels"] + 1, legal.channel_multiple), dense["channels"]}
    wanted = (1 - Fraction(ratio)) * structure.prunable_parameters
    return [
        (heads, channels)
        for heads in legal.counts["heads"]
        for channels in sorted(multiples)
        if abs(heads * per_group(structure, "heads") + channels * per_group(structure, "channels") - wanted)
        <= Fraction(step_size(structure, legal), 2) * (1 + Fraction(1, 10**9))
    ]


def reachable(structure, ratio, legal):
    try:
        check_reachable(structure, ratio, legal)
    except ValueError:
        return False
    return True


def lost(structure, scores, before, after):
    """Importance of the groups that a plan gives up, added up one by one."""
    positions = {d.name: range(before.count(d.name)) for d in structure} | after.positions_in(before)
    return sum(
        float(score)
        for d in structure
        for position, score in enumerate(scores[d.name])
        if position not in set(positions[d.name])
    )


@pytest.mark.parametrize("allocation", ALLOCATIONS)
@given(case=cases(), ratio=RATIOS, seed=st.integers(0, 99))
def test_one_cut_meets_the_ratio_to_half_a_channel_multiple_with_legal_uniform_widths(allocation, case, ratio, seed):
    structure, legal = case
    assume(reachable(structure, ratio, legal))
    full = Plan.full(structure)
    plan = allocate(structure, full, random_scores(structure, full, seed), ratio, legal, allocation)
    wanted = ratio * structure.prunable_parameters
    assert abs(plan.removed_parameters(structure) - wanted) <= 0.5 * step_size(structure, legal) * (1 + 1e-9)
    assert plan.is_uniform(structure)
    heads, channels = plan.counts(structure, "heads")[0], plan.counts(structure, "channels")[0]
    assert (heads, channels) in widths_that_meet(structure, ratio, legal)


@given(case=cases(), ratio=RATIOS)
def test_a_ratio_is_reachable_exactly_when_some_legal_widths_meet_it(case, ratio):
    structure, legal = case
    assert reachable(structure, ratio, legal) == bool(widths_that_meet(structure, ratio, legal))


@given(case=cases(), ratio=RATIOS, seed=st.integers(0, 99))
def test_uniform_keeps_the_legal_head_count_nearest_to_the_ratio(case, ratio, seed):
    structure, legal = case
    pairs = widths_that_meet(structure, ratio, legal)
    assume(pairs)
    full = Plan.full(structure)
    plan = allocate(structure, full, random_scores(structure, full, seed), ratio, legal, "uniform")
    exact = (1 - ratio) * structure.of_kind("heads")[0].num_groups
    nearest = min(abs(heads - exact) for heads, _ in pairs)
    assert abs(plan.counts(structure, "heads")[0] - exact) == nearest


def least_lost(structure, scores, heads, channels):
    """Importance that is lost at the least with these widths."""
    kept = {"heads": heads, "channels": channels}
    return sum(sum(sorted(scores[d.name].tolist())[: len(scores[d.name]) - kept[d.kind]]) for d in structure)


@given(case=cases(), ratio=RATIOS, seed=st.integers(0, 99))
def test_balanced_loses_at_most_a_tenth_more_importance_than_uniform_or_any_other_head_count(case, ratio, seed):
    structure, legal = case
    pairs = widths_that_meet(structure, ratio, legal)
    assume(pairs)
    full = Plan.full(structure)
    scores = random_scores(structure, full, seed)
    losses = {
        allocation: lost(structure, scores, full, allocate(structure, full, scores, ratio, legal, allocation))
        for allocation in ALLOCATIONS
    }
    assert losses["balanced"] <= HEAD_MARGIN * losses["uniform"] + 1e-5
    channels_beside: dict[int, list[int]] = {}
    for heads, channels in pairs:
        channels_beside.setdefault(heads, []).append(channels)
    for heads, (channels, *others) in channels_beside.items():
        if not others:  # two widths can be equally near to the target; either is right then
            assert losses["balanced"] <= HEAD_MARGIN * least_lost(structure, scores, heads, channels) + 1e-5


def test_balanced_spares_the_heads_where_they_matter_and_uniform_does_not(structure):
    full, legal = Plan.full(structure), legal_widths(structure)
    important = {d.name: torch.full((d.num_groups,), 9.0 if d.kind == "heads" else 1e-3) for d in structure}
    balanced = allocate(structure, full, important, 0.4, legal, "balanced")
    uniform = allocate(structure, full, important, 0.4, legal, "uniform")
    assert balanced.counts(structure, "heads") == (4, 4)
    assert uniform.counts(structure, "heads") == (2, 2)
    assert balanced.counts(structure, "channels")[0] < uniform.counts(structure, "channels")[0]


@pytest.mark.parametrize("allocation", ALLOCATIONS)
@given(case=cases(), ratio=RATIOS, seed=st.integers(0, 99))
def test_the_most_important_groups_of_every_dimension_stay(allocation, case, ratio, seed):
    structure, legal = case
    full = Plan.full(structure)
    scores = random_scores(structure, full, seed)
    plan = allocate(structure, full, scores, ratio, legal, allocation)
    for dimension in structure:
        kept = set(plan.kept[dimension.name])
        values = scores[dimension.name]
        gone = [values[group].item() for group in range(dimension.num_groups) if group not in kept]
        assert max(gone, default=-1.0) <= min(values[group].item() for group in kept)


@pytest.mark.parametrize("allocation", ALLOCATIONS)
@settings(max_examples=150)
@given(
    case=cases(),
    ratios=st.lists(RATIOS, min_size=2, max_size=6, unique=True).map(sorted),
    seed=st.integers(0, 99),
)
def test_several_cuts_only_shrink_and_the_last_one_meets_the_ratio(allocation, case, ratios, seed):
    structure, legal = case
    assume(reachable(structure, ratios[-1], legal))
    plan = Plan.full(structure)
    half_step = 0.5 * step_size(structure, legal) * (1 + 1e-9)
    for index, ratio in enumerate(ratios):
        scores = random_scores(structure, plan, seed + index)
        after = allocate(structure, plan, scores, ratio, legal, allocation, final_ratio=ratios[-1])
        after.positions_in(plan)  # raises where a group comes back
        assert after.is_uniform(structure)
        assert after.removed_parameters(structure) >= ratio * structure.prunable_parameters - half_step
        plan = after
    assert abs(plan.removed_parameters(structure) - ratios[-1] * structure.prunable_parameters) <= half_step


@pytest.mark.parametrize("allocation", ALLOCATIONS)
def test_of_equally_important_groups_the_first_stay(structure, allocation):
    full, legal = Plan.full(structure), legal_widths(structure)
    scores = {d.name: torch.ones(d.num_groups) for d in structure}
    plan = allocate(structure, full, scores, 0.5, legal, allocation)
    assert plan.ratio(structure) == 0.5
    for groups in plan.kept.values():
        assert groups == tuple(range(len(groups)))
    assert plan == allocate(structure, full, scores, 0.5, legal, allocation)


def test_equally_good_head_counts_keep_more_heads(structure):
    # 3/8 of four heads go: 2.5 of them are as near to two as to three.
    full, legal = Plan.full(structure), LegalWidths(counts={"heads": (1, 2, 3, 4)}, multiples={"channels": 1})
    scores = {d.name: torch.zeros(d.num_groups) for d in structure}
    for allocation, heads in (("uniform", 3), ("balanced", 4)):
        plan = allocate(structure, full, scores, 0.375, legal, allocation)
        assert plan.counts(structure, "heads") == (heads, heads)


@pytest.mark.parametrize("allocation", ALLOCATIONS)
def test_a_plan_that_is_small_enough_stays_as_it_is(structure, allocation):
    full, legal = Plan.full(structure), legal_widths(structure)
    half = allocate(structure, full, random_scores(structure, full, 0), 0.5, legal, allocation)
    for ratio in (0.0, 0.3, 0.5):
        assert allocate(structure, half, random_scores(structure, half, 1), ratio, legal, allocation) is half


def test_a_ratio_that_would_empty_a_dimension_is_refused_with_what_can_be_reached(structure):
    # One of four KV heads and one of 24 channels stay: 768 and 96 of 3072 and 2304 parameters in each layer.
    most = 1 - (768 + 96) / (3072 + 2304)
    with pytest.raises(ValueError, match=rf"0\.9 would empty a dimension: .* 1 KV .* 1 channel.* at most {most:.4f} "):
        check_reachable(structure, 0.9, legal_widths(structure))
    check_reachable(structure, most, legal_widths(structure))


def test_a_ratio_between_what_two_head_counts_can_reach_is_refused_with_the_nearest():
    # A KV head has 2608 parameters and the whole FFN of eight channels 768: two heads reach 0.00 to 0.11 at most, one
    # head 0.44 to 0.55.
    structure = structure_of("qwen2", 2, 4, 8, 8, 1)
    legal = legal_widths(structure)
    nearest = 1 - (2608 + 768) / (2 * 2608 + 768)
    with pytest.raises(ValueError, match=rf"No legal widths reach a ratio of 0\.3: .* nearest ratio is {nearest:.4f}"):
        check_reachable(structure, 0.3, legal)
    for ratio in (0.1, nearest, 0.5):
        check_reachable(structure, ratio, legal)
    with pytest.raises(ValueError, match=r"0\.9 would empty a dimension"):
        check_reachable(structure, 0.9, legal)


def test_a_target_size_is_met_exactly():
    model = tiny_model()
    structure = describe(model)
    size = sum(parameter.numel() for parameter in model.parameters())
    for removed in (1, 5376, structure.prunable_parameters - 1):
        ratio = ratio_for_parameters(structure, size - removed)
        assert ratio * structure.prunable_parameters == pytest.approx(removed, abs=1e-6)


def test_a_plan_for_a_target_size_has_that_size(structure):
    # Two layers lose one KV head (768 parameters) and three channels (96 each).
    target = structure.num_parameters - 2 * (768 + 3 * 96)
    legal, full = legal_widths(structure), Plan.full(structure)
    plan = allocate(structure, full, random_scores(structure, full, 0), ratio_for_parameters(structure, target), legal)
    assert structure.num_parameters - plan.removed_parameters(structure) == target


@pytest.mark.parametrize("target", [0, 2720, 13_472, 20_000])
def test_a_target_size_out_of_reach_is_refused_with_the_model_s_own_sizes(structure, target):
    # 13,472 parameters, of which 2 x 40 x 32 in the embeddings and the head and 5 x 32 in the norms.
    assert (structure.num_parameters, structure.prunable_parameters) == (13_472, 10_752)
    with pytest.raises(ValueError, match=rf"target of {target:,} parameters cannot be met: .* 13,472, and 2,720 of"):
        ratio_for_parameters(structure, target)


def test_uniform_takes_the_same_share_of_heads_and_channels_where_layers_are_kept():
    structure = describe(
        tiny_model(num_hidden_layers=4, num_attention_heads=8, num_key_value_heads=8), keep_layers=[0, -1]
    )
    scores = {d.name: torch.arange(1.0, d.num_groups + 1) for d in structure}
    legal = legal_widths(structure, channel_multiple=1)
    plan = allocate(structure, Plan.full(structure), scores, 0.25, legal, "uniform")
    lost = {d.name: 1 - plan.count(d.name) / d.num_groups for d in structure}
    assert [lost[f"layers.{layer}.heads"] for layer in range(4)] == [0.0, 0.5, 0.5, 0.0]
    assert [lost[f"layers.{layer}.channels"] for layer in range(4)] == pytest.approx([0.0, 0.5, 0.5, 0.0], abs=0.05)
