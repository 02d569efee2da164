from __future__ import annotations

import pytest
import torch
from tests.models import FAMILIES, features, logits_of, projections, tiny_model, token_ids, with_lora

from loraprune.structure.describe import describe
from loraprune.structure.plan import Plan
from loraprune.surgery.masking import Masks, axis_mask, masked


def a_plan(structure):
    """Two of four KV heads and some channels, others in each layer."""
    return Plan.full(structure).keep(
        {"layers.0.heads": [1, 3], "layers.1.heads": [0, 2], "layers.0.channels": [0, 5, 7], "layers.1.channels": [23]}
    )


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_a_mask_does_what_zeroed_consumer_columns_do(family):
    model = tiny_model(family)
    structure = describe(model)
    plan, ids = a_plan(structure), token_ids()
    with masked(model, structure, plan):
        logits = logits_of(model, ids)
    query_features = model.config.num_attention_heads // model.config.num_key_value_heads * model.config.head_dim
    for layer in range(2):
        linears = projections(model, layer)
        for name, size, kind in (("o_proj", query_features, "heads"), ("down_proj", 1, "channels")):
            kept = features(plan.kept[f"layers.{layer}.{kind}"], size)
            dropped = sorted(set(range(linears[name].in_features)) - set(kept))
            linears[name].weight[:, dropped] = 0.0
    torch.testing.assert_close(logits, logits_of(model, ids), rtol=0, atol=1e-5)


def test_the_input_mask_of_heads_covers_all_query_heads_of_a_kept_kv_head(structure):
    (heads,) = (dimension for dimension in structure if dimension.name == "layers.0.heads")
    assert axis_mask(heads.consumer, heads.num_groups, (1, 2)).tolist() == [0.0] * 8 + [1.0] * 16 + [0.0] * 8


def test_removing_the_masks_restores_the_logits_and_leaves_no_hook(model, structure):
    ids = token_ids()
    dense = logits_of(model, ids)
    with masked(model, structure, a_plan(structure)):
        assert (logits_of(model, ids) - dense).abs().max() > 0.1
    assert torch.equal(logits_of(model, ids), dense)
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_masks_come_off_when_the_block_raises(model, structure):
    with pytest.raises(KeyError), masked(model, structure, a_plan(structure)):
        raise KeyError
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_masks_follow_another_plan(model, structure):
    ids = token_ids()
    other = Plan.full(structure).keep({"layers.1.heads": [3]})
    masks = Masks(model, structure, a_plan(structure))
    masks.apply(other)
    moved = logits_of(model, ids)
    masks.remove()
    with masked(model, structure, other):
        assert torch.equal(moved, logits_of(model, ids))


def test_masks_refuse_a_plan_for_another_model(model, structure):
    smaller = describe(tiny_model(num_hidden_layers=1))
    with pytest.raises(ValueError, match="another model"):
        Masks(model, structure, Plan.full(smaller))


def test_masked_groups_get_no_gradient(model, structure):
    adapted = with_lora(model)
    with masked(adapted, structure, a_plan(structure)):
        adapted(input_ids=token_ids(), labels=token_ids()).loss.backward()
    linears = projections(adapted, 0)
    gone, kept = features([0, 2], 8), features([1, 3], 8)
    gradient_b = linears["q_proj"].lora_B["default"].weight.grad
    gradient_a = linears["o_proj"].lora_A["default"].weight.grad
    assert torch.all(gradient_b[gone] == 0)
    assert torch.all(gradient_a[:, gone] == 0)
    assert torch.all(gradient_b[kept].abs().sum(1) > 0)
    assert torch.all(gradient_a[:, kept].abs().sum(0) > 0)
