from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.models import FAMILIES, tiny_config, tiny_model, with_lora
from transformers import AutoModelForCausalLM, CTRLConfig

from loraprune.architectures import UnsupportedArchitectureError
from loraprune.structure.describe import describe
from loraprune.structure.dimensions import Member
from loraprune.structure.plan import Plan
from loraprune.surgery.slicing import slice_


def named(structure, name):
    (dimension,) = (dimension for dimension in structure if dimension.name == name)
    return dimension


@pytest.mark.parametrize("family", FAMILIES)
def test_every_layer_has_heads_and_channels_in_the_order_of_the_forward_pass(family):
    structure = describe(tiny_model(family))
    assert [dimension.name for dimension in structure] == [
        "layers.0.heads",
        "layers.0.channels",
        "layers.1.heads",
        "layers.1.channels",
    ]
    assert structure.kinds == ("heads", "channels")
    assert [dimension.num_groups for dimension in structure] == [4, 24, 4, 24]
    assert structure.blocks == ("model.layers.0", "model.layers.1")
    assert (structure.query_heads_per_group, structure.hidden_size) == (2, 32)


def test_a_group_of_heads_is_one_kv_head_with_its_query_heads(structure):
    heads = named(structure, "layers.1.heads")
    attention = "model.layers.1.self_attn"
    assert {member.module: (member.axis, member.group_size) for member in heads.all_members} == {
        f"{attention}.q_proj": ("output", 8),
        f"{attention}.k_proj": ("output", 4),
        f"{attention}.v_proj": ("output", 4),
        f"{attention}.o_proj": ("input", 8),
    }
    assert heads.consumer.module == f"{attention}.o_proj"


def test_a_group_of_channels_is_one_row_of_gate_and_up_and_one_column_of_down(structure):
    channels = named(structure, "layers.0.channels")
    mlp = "model.layers.0.mlp"
    assert {member.module: (member.axis, member.group_size) for member in channels.all_members} == {
        f"{mlp}.gate_proj": ("output", 1),
        f"{mlp}.up_proj": ("output", 1),
        f"{mlp}.down_proj": ("input", 1),
    }
    assert channels.consumer.module == f"{mlp}.down_proj"


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tied", [False, True])
def test_a_group_has_as_many_parameters_as_leave_the_model_with_it(family, tied):
    changes = {"attention_bias": True} if family in ("llama", "qwen3") else {}
    for name in ("layers.0.heads", "layers.1.channels"):
        model = tiny_model(family, tie_word_embeddings=tied, head_dim=6, **changes)
        structure = describe(model)
        before = sum(parameter.numel() for parameter in model.parameters())
        dimension = named(structure, name)
        full = Plan.full(structure)
        slice_(model, structure, full, full.keep({name: range(1, dimension.num_groups)}))
        after = sum(parameter.numel() for parameter in model.parameters())
        assert structure.num_parameters == before
        assert dimension.parameters_per_group == before - after


def test_prunable_parameters_are_those_of_the_projections(model, structure):
    projections = sum(p.numel() for name, p in model.named_parameters() if name.endswith("_proj.weight"))
    assert structure.prunable_parameters == projections


def test_lora_leaves_the_structure_as_it_was(model):
    before = describe(model)
    assert describe(with_lora(model)) == before


def test_copies_of_saved_modules_count_once(model):
    before = describe(model)
    adapted = with_lora(model, modules_to_save=["lm_head"])
    assert describe(adapted).num_parameters == before.num_parameters


def test_tied_embeddings_count_once():
    tied, untied = (describe(tiny_model(tie_word_embeddings=value)) for value in (True, False))
    assert untied.num_parameters - tied.num_parameters == 40 * 32


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_without_weights_gives_the_same_structure(family):
    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(tiny_config(family))
    assert describe(empty) == describe(tiny_model(family))


def test_the_head_width_follows_from_the_hidden_size_where_the_config_does_not_state_it():
    structure = describe(tiny_model(head_dim=None, hidden_size=48))
    assert named(structure, "layers.0.heads").consumer.group_size == 2 * 48 // 8


def test_a_pruned_model_can_be_described_once_its_config_says_its_widths(model, structure):
    full = Plan.full(structure)
    plan = full.keep({d.name: [0, 2] if d.kind == "heads" else range(10) for d in structure})
    slice_(model, structure, full, plan)
    model.config.num_attention_heads, model.config.num_key_value_heads = 4, 2
    model.config.intermediate_size = 10
    small = describe(model)
    assert [dimension.num_groups for dimension in small] == [2, 10, 2, 10]
    assert small.num_parameters == structure.num_parameters - plan.removed_parameters(structure)


def test_a_config_that_contradicts_the_weights_is_named_with_its_layer(model):
    model.config.intermediate_size = 23
    with pytest.raises(ValueError, match=r"model\.layers\.0\.mlp\.gate_proj has 24 output features, but 23 groups"):
        describe(model)


def test_a_layer_that_is_missing_is_named(model):
    del model.model.layers[1].mlp.up_proj
    with pytest.raises(ValueError, match=r"names 'model\.layers\.1\.mlp\.up_proj', which the model does not have"):
        describe(model)


def test_query_heads_that_kv_heads_cannot_share_are_refused(model):
    model.config.num_key_value_heads = 3
    with pytest.raises(ValueError, match="8 query heads cannot be shared evenly by 3 KV heads"):
        describe(model)


def test_an_unknown_family_is_refused_with_the_families_that_are_known():
    with torch.device("meta"):
        other = AutoModelForCausalLM.from_config(CTRLConfig(n_layer=1, n_embd=8, n_head=2, vocab_size=10))
    with pytest.raises(UnsupportedArchitectureError, match=r"'ctrl' are not supported. Supported types: bert, bloom"):
        describe(other)


def test_dimensions_are_found_by_layer_and_by_kind(structure):
    assert [d.name for d in structure.of_layer(1)] == ["layers.1.heads", "layers.1.channels"]
    assert [d.name for d in structure.of_kind("channels")] == ["layers.0.channels", "layers.1.channels"]
    assert named(structure, "layers.0.heads").num_parameters == 32 * 4 * (8 + 4 + 4 + 8)


def owners(segments, num_groups, tail):
    """Group of every position along an axis, written out one by one; None behind the last segment."""
    axis = [group for size in segments for group in range(num_groups) for _ in range(size)]
    return axis + [None] * tail


@given(
    segments=st.lists(st.integers(1, 3), min_size=1, max_size=3),
    num_groups=st.integers(1, 5),
    tail=st.integers(0, 2),
    data=st.data(),
)
def test_positions_are_those_of_the_groups_that_stay_in_every_segment_and_of_the_tail(segments, num_groups, tail, data):
    member = Member(module="fused", axis="output", segments=tuple(segments))
    kept = sorted(data.draw(st.sets(st.integers(0, num_groups - 1), min_size=1)))
    axis = owners(segments, num_groups, tail)
    expected = [position for position, group in enumerate(axis) if group is None or group in kept]
    assert member.positions(torch.tensor(kept), num_groups, len(axis)).tolist() == expected


@given(segments=st.lists(st.integers(1, 3), min_size=1, max_size=3), num_groups=st.integers(1, 5))
def test_group_sums_add_what_belongs_to_a_group_over_all_segments(segments, num_groups):
    member = Member(module="fused", axis="output", segments=tuple(segments))
    axis = owners(segments, num_groups, tail=0)
    values = torch.arange(1.0, len(axis) + 1) ** 2
    expected = [sum(v.item() for v, g in zip(values, axis, strict=True) if g == group) for group in range(num_groups)]
    assert member.group_sums(values, num_groups).tolist() == expected
