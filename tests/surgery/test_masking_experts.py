from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tests.models import token_ids
from tests.zoo.experts import ROWS
from tests.zoo.row import adapted, logits, structure_of

from loraprune.structure.plan import Plan
from loraprune.surgery.masking import Masks, masked
from loraprune.surgery.slicing import slice_

EVERY_FAMILY = pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
ROUTER_LOSS = [row for row in ROWS if not row.name.startswith("deepseek")]
NAMES = ("num_experts", "num_local_experts")  # what the families call their number of experts
IDS = token_ids(3, 9)


def keeping(structure, *experts):
    return Plan({dimension.name: experts for dimension in structure})


def routers_of(model):
    return [module for name, module in model.named_modules() if name.endswith("mlp.gate")]


@EVERY_FAMILY
def test_tokens_are_routed_to_kept_experts_only_and_these_keep_their_numbers(row):
    model = row.model()
    structure = structure_of(model, ("experts",))
    chosen = []
    with masked(model, structure, keeping(structure, 1, 3)):
        for router in routers_of(model):
            router.register_forward_hook(lambda module, args, output: chosen.append(output[2]))
        logits(model, row.inputs())
    assert len(chosen) == len(structure.dimensions)
    for index in chosen:
        assert index.sort(dim=-1).values.unique(dim=0).tolist() == [[1, 3]]


@EVERY_FAMILY
def test_masks_on_experts_follow_another_plan_and_leave_nothing_behind(row):
    model = row.model()
    structure = structure_of(model, ("experts",))
    before = logits(model, row.inputs())
    state = {name: value.clone() for name, value in model.state_dict().items()}
    masks = Masks(model, structure, keeping(structure, 0, 1))
    first = logits(model, row.inputs())
    masks.apply(keeping(structure, 0, 2, 3))
    second = logits(model, row.inputs())
    assert not torch.allclose(first, second)
    masks.remove()
    assert torch.equal(logits(model, row.inputs()), before)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    with masked(model, structure, keeping(structure, 0, 2, 3)):
        assert torch.equal(logits(model, row.inputs()), second)


@EVERY_FAMILY
def test_a_mask_on_all_experts_changes_nothing(row):
    model = row.model()
    structure = structure_of(model, ("experts",))
    expected = logits(model, row.inputs())
    with masked(model, structure, Plan.full(structure)):
        assert torch.equal(logits(model, row.inputs()), expected)


@EVERY_FAMILY
def test_the_adapter_of_a_router_counts_in_the_choice_and_is_cut_with_its_rows(row):
    model = row.model()
    structure = structure_of(model, ("experts",))
    config = LoraConfig(r=2, target_modules=[], target_parameters=["gate.weight"], init_lora_weights=False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = get_peft_model(model, config, autocast_adapter_dtype=False).eval()
    plan = keeping(structure, 0, 1, 3)
    with masked(model, structure, plan):
        expected = logits(model, row.inputs())
        with model.disable_adapter():
            assert not torch.allclose(logits(model, row.inputs()), expected)
    slice_(model, structure, Plan.full(structure), plan)
    torch.testing.assert_close(logits(model, row.inputs()), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("row", ROUTER_LOSS, ids=lambda row: row.name)
def test_the_load_balancing_loss_of_a_masked_model_knows_the_kept_experts_only(row):
    model = row.model()
    structure = structure_of(model, ("experts",))
    with masked(model, structure, keeping(structure, 0, 2)):
        output = model(input_ids=IDS, output_router_logits=True)
    assert torch.isfinite(output.aux_loss)
    for router_logits in output.router_logits:
        assert router_logits.shape == (IDS.numel(), 4)
        assert (torch.softmax(router_logits.float(), -1)[:, [1, 3]] == 0).all()


@pytest.mark.parametrize("row", ROUTER_LOSS, ids=lambda row: row.name)
def test_the_load_balancing_loss_of_a_sliced_model_is_that_of_a_stock_model_with_as_many_experts(row):
    model = row.model()
    structure = structure_of(model, ("experts",))
    slice_(model, structure, Plan.full(structure), keeping(structure, 0, 2, 3))
    stock = type(model)(type(model.config).from_dict({**model.config.to_dict(), **dict.fromkeys(NAMES, 3)})).eval()
    stock.load_state_dict(model.state_dict())
    actual, expected = (m(input_ids=IDS, output_router_logits=True).aux_loss for m in (model, stock))
    torch.testing.assert_close(actual, expected)


def test_channels_that_are_masked_learn_nothing():
    row = ROWS[0]
    model = row.model()
    structure = structure_of(model, ("expert_channels",))
    model = adapted(model, structure)
    kept = {
        d.name: tuple(expert * 32 + (channel + expert) % 32 for expert in range(4) for channel in range(8))
        for d in structure
    }
    with masked(model, structure, Plan({name: tuple(sorted(groups)) for name, groups in kept.items()})):
        logits(model, row.inputs()).square().mean().backward()
    for dimension in structure:
        wrapper = model.get_base_model().get_submodule(dimension.consumer.module)
        down = wrapper if wrapper.parameter_name == "down_proj" else wrapper.base_layer
        gradients = down.lora_A["default"].weight.grad.view(4, -1, 32)
        for expert in range(4):
            felt = gradients[expert].abs().sum(0).nonzero().flatten().tolist()
            assert set(felt) <= {group - expert * 32 for group in kept[dimension.name] if group // 32 == expert}
