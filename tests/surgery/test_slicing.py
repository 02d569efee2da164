"""Invariant 1: a sliced model computes what the masked model computes, forward and backward."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.models import (
    FAMILIES,
    PROJECTIONS,
    kept_features,
    logits_of,
    projections,
    prunable_side,
    randomize_,
    sequence_losses,
    tiny_model,
    token_ids,
    with_lora,
)
from tests.strategies import plans, shapes, smaller_plans

from loraprune.structure.describe import describe
from loraprune.structure.plan import Plan
from loraprune.surgery.masking import masked
from loraprune.surgery.slicing import raw_optimizer, slice_, slice_dimension_

ATTENTIONS = ("eager", "sdpa")
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}

A_PLAN = {
    "layers.0.heads": [1, 3],
    "layers.1.heads": [0, 2],
    "layers.0.channels": [0, 3, 5, 7, 11, 20],
    "layers.1.channels": [1, 2, 13, 21, 22, 23],
}


def cut_pair(model, structure, plan):
    """A model and its sliced copy."""
    sliced = copy.deepcopy(model)
    slice_(sliced, structure, Plan.full(structure), plan)
    return model, sliced


def kept_slice(config, plan, layer, name, tensor, dim):
    """The part of a full tensor that belongs to the groups that stay."""
    kept = kept_features(config, name, plan.kept[f"layers.{layer}.heads"], plan.kept[f"layers.{layer}.channels"])
    return tensor.index_select(dim, torch.tensor(kept))


@pytest.mark.filterwarnings("ignore:`lora_bias=True` was passed")
@pytest.mark.parametrize("adapted", [False, True], ids=["plain", "lora"])
@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=8)
@given(data=st.data(), dtype=st.sampled_from([torch.float32, torch.float64]))
def test_sliced_and_masked_models_give_the_same_logits(family, attention, adapted, data, dtype):
    model = tiny_model(family, attention=attention, dtype=dtype, **data.draw(shapes(family)))
    if adapted:
        model = with_lora(model, lora_bias=data.draw(st.booleans(), label="LoRA bias"))
        randomize_(model, seed=1)
    structure = describe(model)
    plan = data.draw(plans(structure))
    ids = token_ids()
    _, sliced = cut_pair(model, structure, plan)
    with masked(model, structure, plan):
        expected = logits_of(model, ids)
    torch.testing.assert_close(logits_of(sliced, ids), expected, rtol=0, atol=TOLERANCE[dtype] * scale(expected))


def scale(values):
    """The invariant is stated for logits of ordinary size; the random ones may be larger."""
    return max(1.0, values.abs().max().item())


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=8)
@given(data=st.data())
def test_gradients_of_the_sliced_model_are_the_kept_slices_of_the_masked_model(family, data):
    model = with_lora(tiny_model(family, dtype=torch.float64, **data.draw(shapes(family))))
    config, structure = model.config, describe(model, ("heads", "channels"))
    plan = data.draw(plans(structure))
    ids = token_ids()
    _, sliced = cut_pair(model, structure, plan)
    with masked(model, structure, plan):
        sequence_losses(model, ids).sum().backward()
    sequence_losses(sliced, ids).sum().backward()
    for layer in range(config.num_hidden_layers):
        full, small = projections(model, layer), projections(sliced, layer)
        for name in PROJECTIONS:
            for side, factor in ((1, "lora_A"), (0, "lora_B")):
                expected = getattr(full[name], factor)["default"].weight.grad
                if side == prunable_side(name):
                    expected = kept_slice(config, plan, layer, name, expected, side)
                actual = getattr(small[name], factor)["default"].weight.grad
                torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=6)
@given(data=st.data())
def test_several_cuts_leave_the_tensors_that_one_cut_leaves(family, data):
    model = with_lora(tiny_model(family, **data.draw(shapes(family))))
    structure = describe(model)
    _, stepwise = cut_pair(model, structure, Plan.full(structure))
    plan = Plan.full(structure)
    for _ in range(data.draw(st.integers(2, 4), label="cuts")):
        after = data.draw(smaller_plans(structure, plan))
        slice_(stepwise, structure, plan, after)
        plan = after
    _, at_once = cut_pair(model, structure, plan)
    for (name, one), (_, other) in zip(at_once.named_parameters(), stepwise.named_parameters(), strict=True):
        assert torch.equal(one, other), name


def test_a_cut_changes_the_logits_by_more_than_the_tolerance(model, structure):
    # Otherwise the tests above would say nothing.
    ids = token_ids()
    dense = logits_of(model, ids)
    for dimension in structure:
        plan = Plan.full(structure).keep({dimension.name: range(1, dimension.num_groups)})
        with masked(model, structure, plan):
            assert (logits_of(model, ids) - dense).abs().max() > 1e-2, dimension.name


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tied", [False, True])
def test_the_merged_sliced_model_gives_the_logits_of_the_unmerged_one(family, tied):
    model = with_lora(tiny_model(family, tie_word_embeddings=tied))
    structure = describe(model)
    slice_(model, structure, Plan.full(structure), Plan.full(structure).keep(A_PLAN))
    ids = token_ids()
    unmerged = logits_of(model, ids)
    merged = model.merge_and_unload()
    assert not any("lora" in name for name, _ in merged.named_parameters())
    torch.testing.assert_close(logits_of(merged, ids), unmerged, rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_sliced_layers_keep_the_rows_biases_and_columns_of_the_groups_that_stay(family):
    changes = {"attention_bias": True} if family in ("llama", "qwen3") else {}
    model = tiny_model(family, **changes)
    structure = describe(model)
    plan = Plan.full(structure).keep(A_PLAN)
    full, sliced = cut_pair(model, structure, plan)
    for layer in range(2):
        before, after = projections(full, layer), projections(sliced, layer)
        for name in PROJECTIONS:
            dim = prunable_side(name)
            expected = kept_slice(model.config, plan, layer, name, before[name].weight, dim)
            assert torch.equal(after[name].weight, expected), name
            assert (after[name].out_features, after[name].in_features) == tuple(expected.shape)
            if before[name].bias is not None:
                bias = before[name].bias
                expected = kept_slice(model.config, plan, layer, name, bias, 0) if dim == 0 else bias
                assert torch.equal(after[name].bias, expected), name
    has_bias = projections(full, 0)["q_proj"].bias is not None
    assert has_bias == (family != "mistral")


def test_peft_layers_remember_their_new_sizes(model, structure):
    adapted = with_lora(model)
    slice_(adapted, structure, Plan.full(structure), Plan.full(structure).keep(A_PLAN))
    q_proj, down_proj = projections(adapted, 0)["q_proj"], projections(adapted, 0)["down_proj"]
    assert q_proj.out_features == q_proj.lora_B["default"].out_features == q_proj.base_layer.out_features == 16
    assert down_proj.in_features == down_proj.lora_A["default"].in_features == down_proj.base_layer.in_features == 6
    assert q_proj.in_features == q_proj.lora_A["default"].in_features == 32


def test_a_sliced_model_generates_with_its_cache_what_it_gives_without(model, structure):
    slice_(model, structure, Plan.full(structure), Plan.full(structure).keep(A_PLAN))
    ids = token_ids(1, 5)
    written = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False)
    for _ in range(6):
        ids = torch.cat([ids, logits_of(model, ids)[:, -1:].argmax(-1)], dim=1)
    assert torch.equal(written, ids)


def test_a_model_with_dora_is_sliced_to_what_it_computes_when_masked(model, structure):
    adapted = with_lora(model, use_dora=True)
    plan = Plan.full(structure).keep(A_PLAN)
    ids = token_ids()
    _, sliced = cut_pair(adapted, structure, plan)
    with masked(adapted, structure, plan):
        expected = logits_of(adapted, ids)
    torch.testing.assert_close(logits_of(sliced, ids), expected, rtol=0, atol=1e-5)


def test_parameters_stay_the_same_objects_and_lose_their_gradients(model, structure):
    adapted = with_lora(model)
    sequence_losses(adapted, token_ids()).sum().backward()
    before = dict(adapted.named_parameters())
    slice_(adapted, structure, Plan.full(structure), Plan.full(structure).keep(A_PLAN))
    for name, parameter in adapted.named_parameters():
        assert parameter is before[name]
    linears = projections(adapted, 0)
    assert linears["q_proj"].lora_B["default"].weight.grad is None
    assert linears["o_proj"].lora_A["default"].weight.grad is None
    assert linears["q_proj"].lora_A["default"].weight.grad is not None  # not cut: its gradient is still right


@pytest.mark.parametrize("first", [0, 2], ids=["the first groups stay", "the last groups stay"])
def test_slicing_frees_the_memory_of_what_goes(model, structure, first):
    adapted = with_lora(model)
    storages = {name: parameter.untyped_storage().nbytes() for name, parameter in adapted.named_parameters()}
    full = Plan.full(structure)
    half = {d.name: range(first * d.num_groups // 4, (first + 2) * d.num_groups // 4) for d in structure}
    slice_(adapted, structure, full, full.keep(half))
    for name, parameter in adapted.named_parameters():
        nbytes = parameter.untyped_storage().nbytes()
        assert nbytes == parameter.numel() * parameter.element_size(), name
        if name.endswith("_proj.base_layer.weight"):
            assert nbytes * 2 == storages[name], name


def train(model, batches, optimizer):
    losses = []
    for ids in batches:
        optimizer.zero_grad()
        loss = sequence_losses(model, ids).mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def adapter_optimizer(model):
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return torch.optim.AdamW(trained, lr=0.02, weight_decay=0.1)


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_a_run_cut_in_the_middle_goes_on_like_one_whose_masked_groups_were_never_there(family):
    late = with_lora(tiny_model(family, dtype=torch.float64))
    structure = describe(late)
    plan = Plan.full(structure).keep(A_PLAN)
    _, early = cut_pair(late, structure, plan)
    batches = [token_ids(seed=step) for step in range(8)]

    optimizer = adapter_optimizer(late)
    with masked(late, structure, plan):
        losses = train(late, batches[:4], optimizer)
    slice_(late, structure, Plan.full(structure), plan, optimizer)
    losses += train(late, batches[4:], optimizer)
    reference = adapter_optimizer(early)
    expected = train(early, batches, reference)

    torch.testing.assert_close(losses, expected, rtol=1e-9, atol=1e-9)
    for (name, one), (_, other) in zip(late.named_parameters(), early.named_parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-9, msg=name)
        for key in reference.state.get(other, {}):
            torch.testing.assert_close(
                optimizer.state[one][key], reference.state[other][key], rtol=1e-7, atol=1e-12, msg=f"{name} {key}"
            )


def test_the_state_of_the_optimizer_gets_the_new_shapes_and_the_kept_values(model, structure):
    adapted = with_lora(model)
    optimizer = adapter_optimizer(adapted)
    train(adapted, [token_ids()], optimizer)
    weight = projections(adapted, 1)["k_proj"].lora_B["default"].weight
    before = {key: value.clone() for key, value in optimizer.state[weight].items()}
    slice_(adapted, structure, Plan.full(structure), Plan.full(structure).keep(A_PLAN), optimizer)
    rows = [0, 1, 2, 3, 8, 9, 10, 11]
    for key in ("exp_avg", "exp_avg_sq"):
        assert torch.equal(optimizer.state[weight][key], before[key][rows])
        assert before[key][rows].abs().max() > 0
    assert torch.equal(optimizer.state[weight]["step"], before["step"])
    for parameter, state in optimizer.state.items():
        assert state["exp_avg"].shape == state["exp_avg_sq"].shape == parameter.shape


def test_training_goes_on_although_an_earlier_loss_is_still_held(model, structure):
    # A graph that is still alive holds the gradient accumulators of the parameters with their old shapes.
    adapted = with_lora(model)
    held = sequence_losses(adapted, token_ids()).sum()
    held.backward()
    slice_(adapted, structure, Plan.full(structure), Plan.full(structure).keep(A_PLAN))
    sequence_losses(adapted, token_ids()).sum().backward()
    weight = projections(adapted, 0)["q_proj"].lora_B["default"].weight
    assert weight.grad.shape == weight.shape


class Wrapper:
    """As accelerate wraps an optimizer."""

    def __init__(self, optimizer):
        self.optimizer = optimizer


def test_the_optimizer_is_found_under_wrappers(model):
    optimizer = torch.optim.AdamW(model.parameters())
    assert raw_optimizer(Wrapper(Wrapper(optimizer))) is optimizer
    assert raw_optimizer(optimizer) is optimizer
    assert raw_optimizer(None) is None


def test_a_wrapped_optimizer_is_cut_with_the_model(model, structure):
    optimizer = adapter_optimizer(model)
    train(model, [token_ids()], optimizer)
    slice_(model, structure, Plan.full(structure), Plan.full(structure).keep(A_PLAN), Wrapper(optimizer))
    weight = projections(model, 0)["gate_proj"].weight
    assert optimizer.state[weight]["exp_avg"].shape == weight.shape == (6, 32)


def test_one_dimension_can_be_cut_by_itself(model, structure):
    shapes_before = {name: parameter.shape for name, parameter in model.named_parameters()}
    (channels,) = (dimension for dimension in structure if dimension.name == "layers.1.channels")
    slice_dimension_(model, channels, [2, 4], channels.num_groups)
    changed = {name for name, parameter in model.named_parameters() if parameter.shape != shapes_before[name]}
    assert changed == {f"model.layers.1.mlp.{name}.weight" for name in ("gate_proj", "up_proj", "down_proj")}


def test_slicing_to_a_plan_that_regrows_is_refused_and_changes_nothing(model, structure):
    smaller = Plan.full(structure).keep(A_PLAN)
    slice_(model, structure, Plan.full(structure), smaller)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    with pytest.raises(ValueError, match=r"A plan only shrinks: group 0 of layers\.0\.heads was already removed"):
        slice_(model, structure, smaller, Plan.full(structure))
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name])


def test_slicing_to_the_same_plan_changes_nothing(model, structure):
    pointers = [parameter.data_ptr() for parameter in model.parameters()]
    slice_(model, structure, Plan.full(structure), Plan.full(structure))
    assert [parameter.data_ptr() for parameter in model.parameters()] == pointers
