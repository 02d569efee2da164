"""Descriptions that do not fit their model, and wishes that a model cannot grant, are refused by what is wrong."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.models import tiny_model

from loraprune import architectures
from loraprune.architectures import DimensionSpec, MemberSpec, Number, StackSpec, register
from loraprune.architectures.llama import LLAMA
from loraprune.architectures.spec import RowUnit
from loraprune.structure.describe import describe
from loraprune.structure.kinds import protected_layers

UP = MemberSpec(module="mlp.up_proj", axis="output", segments=(("channel",),))
DOWN = MemberSpec(module="mlp.down_proj", axis="input", segments=(("channel",),))
O = MemberSpec(module="self_attn.o_proj", axis="input", segments=(("query",),))  # noqa: E741


@pytest.fixture
def model(monkeypatch):
    monkeypatch.setattr(architectures, "_SPECS", dict(architectures._SPECS))
    return tiny_model(attention_bias=True)


def register_dimension(*members: MemberSpec, consumer: MemberSpec = DOWN, **changes: object) -> None:
    dimension = DimensionSpec(kind="channels", members=members, consumer=consumer, **changes)
    register(replace(LLAMA, stacks=(StackSpec(blocks="model.layers", dimensions=(dimension,)),)))


def member(module: str, *segments: tuple[RowUnit, ...], axis: str = "output", **changes: object) -> MemberSpec:
    return MemberSpec(module=module, axis=axis, segments=segments, **changes)


def test_blocks_that_the_model_does_not_have(model) -> None:
    register(replace(LLAMA, stacks=(replace(LLAMA.stacks[0], blocks="model.blocks"),)))
    with pytest.raises(ValueError, match=r"names the blocks 'model\.blocks', which the model does not have"):
        describe(model)


def test_a_module_that_the_model_does_not_have_is_named_with_those_it_has(model) -> None:
    register_dimension(UP, replace(UP, module="mlp.gate"))
    with pytest.raises(
        ValueError, match=r"names 'model\.layers\.0\.mlp\.gate', which the model does not have"
    ) as caught:
        describe(model)
    assert "mlp.gate_proj (24, 32)" in str(caught.value)


def test_a_parameter_that_the_module_does_not_have(model) -> None:
    register_dimension(UP, replace(UP, parameter="gain"))
    with pytest.raises(
        ValueError, match=r"names 'model\.layers\.0\.mlp\.up_proj\.gain', which the model does not have"
    ):
        describe(model)


def test_a_side_that_the_module_does_not_have(model) -> None:
    register_dimension(UP, member("input_layernorm", ("channel",), axis="input"))
    with pytest.raises(ValueError, match=r"the input side of 'model\.layers\.0\.input_layernorm'.*has no input side"):
        describe(model)


def test_members_whose_sizes_do_not_agree_are_named_with_their_shapes(model) -> None:
    register_dimension(UP, member("self_attn.k_proj", ("channel",)))
    with pytest.raises(
        ValueError, match=r"self_attn\.k_proj has 16 output features, but 24 groups of 1 need 24"
    ) as caught:
        describe(model)
    assert "Its shape is (16, 32), that of the consumer model.layers.0.mlp.down_proj (32, 24)." in str(caught.value)


def test_a_fused_layout_that_the_layer_is_too_short_for(model) -> None:
    register_dimension(member("self_attn.q_proj", ("query",), ("kv",)), consumer=O)
    with pytest.raises(ValueError, match=r"q_proj has 32 output features, but 4 groups of 12 need 48"):
        describe(model)


def test_a_layout_that_does_not_divide_the_consumer(model) -> None:
    register_dimension(UP, consumer=replace(DOWN, segments=(("query", "kv", "head", "channel"),)))
    with pytest.raises(ValueError, match=r"down_proj has 24 input features, which cannot be divided into groups of 17"):
        describe(model)


def test_optional_members_that_are_all_missing(model) -> None:
    register_dimension(member("mlp.fc1", ("channel",), optional=True), member("mlp.wi", ("channel",), optional=True))
    with pytest.raises(
        ValueError, match=r"No layer produces the channels that .*down_proj reads: .* has none of mlp\.fc1, mlp\.wi"
    ):
        describe(model)


def test_strata_that_the_groups_cannot_be_spread_over(model) -> None:
    register_dimension(UP, consumer=DOWN, strata="experts")
    model.config.num_experts = 7
    with pytest.raises(ValueError, match="has 24 groups, which cannot be divided by 7 experts"):
        describe(model)


def test_a_kind_that_the_model_does_not_have(model) -> None:
    with pytest.raises(ValueError, match="kind 'experts'; it has heads, query_heads, channels"):
        describe(model, ("heads", "experts"))


def test_kinds_that_overlap(model) -> None:
    with pytest.raises(ValueError, match="heads and query_heads overlap"):
        describe(model, ("query_heads", "heads"))


@pytest.mark.parametrize("layer", [2, -3])
def test_a_layer_to_keep_that_is_not_there(model, layer) -> None:
    with pytest.raises(ValueError, match=f"no layer {layer} to keep: the model has layers 0 to 1"):
        describe(model, keep_layers=(0, layer))


def test_keeping_every_layer(model) -> None:
    with pytest.raises(ValueError, match="All layers would be kept"):
        describe(model, keep_layers=(0, -1))


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda: member("up", ("chanel",)), "a unit of up is 'chanel'; allowed: query, kv"),
        (lambda: member("up", ("one",), axis="rows"), "axis of up is 'rows'; allowed: output, input"),
        (lambda: Number(name="ffn", count="all"), "count of ffn is 'all'; allowed: queries, groups"),
        (
            lambda: DimensionSpec(kind="channels", members=(UP,), consumer=DOWN, strata="heads"),
            "strata of channels is 'heads'; allowed: kv, experts",
        ),
    ],
)
def test_a_word_that_is_not_in_the_vocabulary(made, message) -> None:
    with pytest.raises(ValueError, match=message):
        made()


def test_a_share_of_the_layers_is_the_first_ones() -> None:
    assert protected_layers(("10%", -1), 32) == {0, 1, 2, 31}
    assert protected_layers(("25%",), 2) == frozenset()


@pytest.mark.parametrize("share", ["10", "x%", "110%", "-5%"])
def test_a_share_of_the_layers_that_is_none(share) -> None:
    with pytest.raises(ValueError, match=f"keep_layers has '{share}'. Write a layer number"):
        protected_layers((share,), 4)
