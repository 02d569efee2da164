from __future__ import annotations

import copy
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.models import tiny_model
from tests.strategies import plans, smaller_plans

from loraprune.structure.describe import describe
from loraprune.structure.plan import Plan
from loraprune.surgery.slicing import slice_

MODEL = tiny_model()
STRUCTURE = describe(MODEL)
FULL = Plan.full(STRUCTURE)


def test_the_full_plan_keeps_every_group_and_removes_nothing():
    assert [len(groups) for groups in FULL.kept.values()] == [4, 24, 4, 24]
    assert FULL.kept["layers.0.heads"] == (0, 1, 2, 3)
    assert FULL.removed_parameters(STRUCTURE) == 0
    assert FULL.ratio(STRUCTURE) == 0.0


def test_an_empty_dimension_is_refused():
    with pytest.raises(ValueError, match=r"at least one group of every dimension, but layers\.1\.heads would be empty"):
        FULL.keep({"layers.1.heads": []})


@pytest.mark.parametrize("groups", [(2, 1), (1, 1)])
def test_groups_that_are_not_ascending_and_distinct_are_refused(groups):
    with pytest.raises(ValueError, match=r"The groups kept in layers\.0\.heads are not ascending and distinct"):
        Plan({**FULL.kept, "layers.0.heads": groups})


def test_positions_count_among_the_groups_that_are_left():
    once = FULL.keep({"layers.0.heads": [1, 2, 3]})
    twice = once.keep({"layers.0.heads": [0, 2]})
    assert twice.kept["layers.0.heads"] == (1, 3)
    assert twice.positions_in(once) == {"layers.0.heads": [0, 2]}
    assert twice.positions_in(FULL) == {"layers.0.heads": [1, 3]}
    assert twice.kept["layers.1.channels"] == FULL.kept["layers.1.channels"]


@given(data=st.data())
def test_positions_in_an_earlier_plan_lead_from_it_to_the_later_one(data):
    earlier = data.draw(plans(STRUCTURE))
    later = data.draw(smaller_plans(STRUCTURE, earlier))
    positions = later.positions_in(earlier)
    assert earlier.keep(positions) == later
    assert set(positions) == {name for name in later.kept if later.kept[name] != earlier.kept[name]}


@given(data=st.data())
def test_a_plan_that_keeps_what_was_removed_is_refused(data):
    earlier = data.draw(plans(STRUCTURE))
    later = data.draw(plans(STRUCTURE))
    regrown = [name for name in later.kept if not set(later.kept[name]) <= set(earlier.kept[name])]
    if not regrown:
        later.positions_in(earlier)
        return
    name = regrown[0]
    group = min(set(later.kept[name]) - set(earlier.kept[name]))
    with pytest.raises(ValueError, match=rf"A plan only shrinks: group {group} of {name} was already removed"):
        later.positions_in(earlier)


@given(data=st.data())
def test_a_plan_comes_back_from_json(data):
    plan = data.draw(plans(STRUCTURE))
    assert Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan


def test_a_plan_passes_the_check_of_its_own_model():
    FULL.keep({"layers.0.heads": [3]}).check(STRUCTURE)


def test_a_plan_for_a_model_with_other_layers_is_refused():
    shallow = describe(tiny_model(num_hidden_layers=1))
    with pytest.raises(ValueError, match=r"for another model: 'layers\.1\.channels' is in only one of the two"):
        FULL.check(shallow)
    with pytest.raises(ValueError, match=r"'layers\.1\.channels' is in only one of the two"):
        Plan.full(shallow).check(STRUCTURE)


def test_a_plan_for_a_model_with_more_groups_is_refused():
    narrow = describe(tiny_model(intermediate_size=23))
    with pytest.raises(ValueError, match=r"it keeps group 23 of layers\.0\.channels, which has 23 groups"):
        FULL.check(narrow)


def test_a_plan_is_uniform_when_every_layer_has_the_same_widths():
    same = FULL.keep({"layers.0.heads": [0, 1], "layers.1.heads": [2, 3]})
    assert same.is_uniform(STRUCTURE)
    assert not same.keep({"layers.0.channels": [5]}).is_uniform(STRUCTURE)
    assert same.counts(STRUCTURE, "heads") == (2, 2)
    assert same.count("layers.1.channels") == 24


@settings(max_examples=15)
@given(data=st.data())
def test_removed_parameters_are_those_that_slicing_removes(data):
    plan = data.draw(plans(STRUCTURE))
    sliced = copy.deepcopy(MODEL)
    slice_(sliced, STRUCTURE, FULL, plan)
    gone = sum(p.numel() for p in MODEL.parameters()) - sum(p.numel() for p in sliced.parameters())
    assert plan.removed_parameters(STRUCTURE) == gone
    prunable = sum(p.numel() for name, p in MODEL.named_parameters() if "_proj" in name)
    assert plan.ratio(STRUCTURE) == gone / prunable


@settings(deadline=None, max_examples=40)
@given(ratio=st.floats(0.0, 0.9), family=st.sampled_from(["llama", "qwen3"]), queries=st.sampled_from([1, 2]))
def test_a_uniform_plan_meets_its_ratio_with_the_first_groups_of_every_dimension(ratio, family, queries):
    structure = describe(tiny_model(family, intermediate_size=64, num_attention_heads=4 * queries))
    plan = Plan.uniform(structure, ratio, channel_multiple=1, head_counts="any")
    plan.check(structure)
    assert plan.is_uniform(structure)
    finest = max(2 * d.parameters_per_group for d in structure if d.kind == "channels")
    assert abs(plan.ratio(structure) - ratio) * structure.prunable_parameters <= 0.5 * finest * (1 + 1e-6)
    assert all(groups == tuple(range(len(groups))) for groups in plan.kept.values())


def test_a_uniform_plan_takes_the_same_share_of_heads_and_of_channels():
    structure = describe(tiny_model(intermediate_size=64))
    plan = Plan.uniform(structure, 0.5)
    assert {kind: plan.counts(structure, kind) for kind in structure.kinds} == {"heads": (2, 2), "channels": (32, 32)}


def test_a_uniform_plan_of_strata_keeps_the_first_of_each():
    structure = describe(MODEL, ["query_heads"])
    assert Plan.uniform(structure, 0.5).kept["layers.0.query_heads"] == (0, 2, 4, 6)


def test_a_uniform_plan_spares_protected_layers_and_blocks():
    structure = describe(MODEL, keep_layers=[1])
    plan = Plan.uniform(structure, 0.25)
    assert plan.count("layers.1.heads") == 4
    assert plan.count("layers.1.channels") == 24
    assert plan.count("layers.0.channels") < 24
    blocks = describe(tiny_model(num_hidden_layers=4), ["blocks"], keep_layers=[-1])
    assert tuple(Plan.uniform(blocks, 0.5).kept.values()) == ((0, 3),)


@pytest.mark.parametrize("ratio", [1.0, -0.1, 0.99])
def test_a_ratio_that_no_uniform_plan_meets_is_refused(ratio):
    with pytest.raises(ValueError, match="ratio"):
        Plan.uniform(STRUCTURE, ratio)


def test_groups_with_which_a_model_could_not_run_are_refused():
    structure = describe(MODEL, ["query_heads", "channels"])
    full = Plan.full(structure)
    with pytest.raises(ValueError, match="not equally many in each of its 4 strata of 2"):
        full.keep({"layers.0.query_heads": [0, 1, 2]}).check(structure)
    full.keep({"layers.0.query_heads": [0, 2, 4, 6]}).check(structure)
