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
    with pytest.raises(ValueError, match=r"at least one group of every dimension; layers\.1\.heads would be empty"):
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
