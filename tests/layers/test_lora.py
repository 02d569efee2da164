from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig
from tests.models import projections, randomize_, tiny_model, with_lora
from torch import nn

from loraprune.layers.lora import (
    check_tied_adapters,
    effective_weight,
    has_variant,
    lora_delta,
    lora_factors,
    row_blocks,
)


@pytest.fixture
def layer(model):
    """down_proj under two active adapters of different rank and scaling, and an idle one."""
    adapted = with_lora(model, r=3, lora_alpha=4)
    config = LoraConfig(r=2, lora_alpha=5, target_modules=["down_proj"], init_lora_weights=False)
    adapted.add_adapter("second", config)
    adapted.add_adapter("idle", config)
    randomize_(adapted, seed=3)
    adapted.base_model.set_adapter(["default", "second"])
    return projections(adapted, 0)["down_proj"]


def weight_by_forward(layer):
    """What a layer without bias multiplies its input with, found by feeding it unit vectors."""
    with torch.no_grad():
        return layer(torch.eye(layer.in_features)).T


def test_the_effective_weight_is_what_the_layer_multiplies_with(layer):
    torch.testing.assert_close(effective_weight(layer), weight_by_forward(layer), rtol=0, atol=1e-6)


def test_some_rows_of_the_effective_weight_are_rows_of_the_whole(layer):
    torch.testing.assert_close(effective_weight(layer, slice(3, 7)), weight_by_forward(layer)[3:7], rtol=0, atol=1e-6)


def test_only_active_adapters_have_factors(layer):
    assert [(f.a.shape[0], f.scaling) for f in lora_factors(layer)] == [(3, 4 / 3), (2, 5 / 2)]


def test_a_plain_layer_has_no_factors_and_its_own_weight(model):
    linear = projections(model, 0)["q_proj"]
    assert lora_factors(linear) == []
    assert lora_delta(linear) is None
    assert torch.equal(effective_weight(linear), linear.weight)


def test_dora_is_a_variant_and_lora_is_not():
    found = {
        use_dora: has_variant(projections(with_lora(tiny_model(), use_dora=use_dora), 0)["q_proj"])
        for use_dora in (False, True)
    }
    assert found == {False: False, True: True}
    assert not has_variant(nn.Linear(2, 2))


def test_the_effective_weight_is_a_copy_in_32_bits():
    linear = nn.Linear(3, 2, bias=False)
    before = linear.weight.clone()
    effective_weight(linear).zero_()
    assert torch.equal(linear.weight, before)
    assert effective_weight(linear.bfloat16()).dtype == torch.float32


@given(rows=st.integers(1, 50), columns=st.integers(1, 50), elements=st.integers(1, 400))
def test_blocks_cover_every_row_once_and_stay_small(rows, columns, elements):
    blocks = row_blocks(rows, columns, elements)
    assert [row for block in blocks for row in range(rows)[block]] == list(range(rows))
    for block in blocks:
        assert (block.stop - block.start) * columns <= max(elements, columns)


@pytest.mark.parametrize("target", ["embed_tokens", "lm_head"])
def test_an_adapter_on_one_side_of_a_shared_embedding_is_refused(target):
    tied = with_lora(tiny_model("llama", tie_word_embeddings=True), target_modules=["q_proj", target])
    with pytest.raises(ValueError, match="share one weight, but the adapter is on only one of them"):
        check_tied_adapters(tied)
    check_tied_adapters(with_lora(tiny_model("llama"), target_modules=["q_proj", target]))
    check_tied_adapters(with_lora(tiny_model("llama", tie_word_embeddings=True)))
