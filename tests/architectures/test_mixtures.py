"""What mixtures of experts have beside the contract that every family keeps."""

from __future__ import annotations

import pytest
from tests.zoo.experts import ROWS
from tests.zoo.row import Row
from torch import nn
from transformers import AutoModelForCausalLM

from loraprune.structure.describe import describe
from loraprune.structure.widths import legal_widths

BY_NAME = {row.name: row for row in ROWS}
EVERY_FAMILY = pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)


def model_with(row: Row, **changes) -> nn.Module:
    config = row.config()
    return AutoModelForCausalLM.from_config(type(config).from_dict({**config.to_dict(), **changes}))


def kinds_of(model: nn.Module) -> set[str]:
    structure = describe(model)
    return {*structure.kinds, *structure.left_out}


@pytest.mark.parametrize(
    ("name", "changes", "whole"),
    [
        ("deepseek_v2", {"topk_method": "greedy", "n_group": 2, "topk_group": 1}, True),
        ("deepseek_v2", {"topk_method": "group_limited_greedy", "n_group": 1, "topk_group": 1}, True),
        ("deepseek_v2", {"topk_method": "group_limited_greedy", "n_group": 2, "topk_group": 1}, False),
        ("deepseek_v3", {"n_group": 1, "topk_group": 1}, True),
        ("deepseek_v3", {"n_group": 2, "topk_group": 1}, False),
        ("deepseek_v3", {"n_group": 1, "topk_group": 1, "num_experts_per_tok": 1}, False),
    ],
)
def test_whole_experts_can_go_only_where_the_router_does_not_count_them_in_groups(name, changes, whole):
    model = model_with(BY_NAME[name], **changes)
    assert ("experts" in kinds_of(model)) == whole
    if not whole:
        with pytest.raises(ValueError, match="has no dimensions of kind 'experts'; it has channels, expert_channels"):
            describe(model, ("experts",))


@pytest.mark.parametrize("name", ["deepseek_v2", "deepseek_v3"])
def test_latent_attention_stays_as_it_is(name):
    model = BY_NAME[name].model()
    for kind in kinds_of(model):
        assert not any("attn" in member.module for d in describe(model, (kind,)) for member in d.all_members)


@EVERY_FAMILY
def test_as_many_experts_stay_as_a_token_needs(row):
    structure = describe(model_with(row, num_experts_per_tok=3), ("experts",))
    assert {dimension.floor for dimension in structure} == {3}
    assert legal_widths(structure).counts["experts"] == (3, 4)


@EVERY_FAMILY
def test_experts_keep_channels_in_multiples_that_the_grouped_product_takes(row):
    structure = describe(row.model(), ("expert_channels",))
    assert legal_widths(structure).multiples["expert_channels"] == 8
    assert legal_widths(structure, channel_multiple=12).multiples["expert_channels"] == 24
    with pytest.raises(ValueError, match=r"cannot be multiples of 7: .* multiples of 8 as well.* --channel-multiple 8"):
        legal_widths(structure, channel_multiple=7)


@pytest.mark.parametrize(("width", "multiple"), [(24, 8), (20, 4), (15, 1)])
def test_experts_of_an_odd_width_keep_what_their_width_allows(width, multiple):
    structure = describe(model_with(BY_NAME["mixtral"], intermediate_size=width), ("expert_channels",))
    assert legal_widths(structure).multiples["expert_channels"] == multiple


@pytest.mark.parametrize("name", ["qwen2_moe", "qwen3_moe"])
@pytest.mark.parametrize(
    ("changes", "dense"),
    [
        ({"mlp_only_layers": [], "decoder_sparse_step": 1}, set()),
        ({"mlp_only_layers": [1], "decoder_sparse_step": 1}, {1}),
        ({"mlp_only_layers": [], "decoder_sparse_step": 2}, {0, 2}),
    ],
)
def test_a_block_has_either_experts_or_the_channels_of_a_dense_ffn(name, changes, dense):
    structure = describe(model_with(BY_NAME[name], num_hidden_layers=4, layer_types=None, **changes))
    assert {d.layer for d in structure.of_kind("channels")} == dense
    assert {d.layer for d in structure.of_kind("expert_channels")} == set(range(4)) - dense


@pytest.mark.parametrize("name", ["deepseek_v2", "deepseek_v3"])
def test_routed_and_shared_experts_have_one_width(name):
    structure = describe(model_with(BY_NAME[name], n_shared_experts=3), ("expert_channels",))
    strata = {d.name: (d.strata, d.per_stratum) for d in structure}
    assert strata == {"layers.1.expert_channels": (4, 32), "layers.1.shared_expert_channels": (3, 32)}
    assert {tuple(d.config) for d in structure} == {("moe_intermediate_size",)}
