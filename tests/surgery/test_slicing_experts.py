from __future__ import annotations

import copy

import pytest
import torch
from tests.models import sequence_losses, token_ids
from tests.zoo.experts import ROWS
from tests.zoo.plans import uniform_plan
from tests.zoo.row import adapted, logits, structure_of

from loraprune.layers.unwrap import adapter_of
from loraprune.structure.plan import Plan
from loraprune.surgery.masking import masked
from loraprune.surgery.slicing import slice_

KINDS = (None, ("experts",))
EVERY_CASE = pytest.mark.parametrize(
    ("row", "kinds"), [(row, kinds) for row in ROWS for kinds in KINDS], ids=lambda value: getattr(value, "name", None)
)


def in_double(row, kinds):
    """A model with LoRA in 64 bits, so that AdamW's first steps, which only see signs, do not see rounding."""
    model = row.model()
    structure = structure_of(model, kinds)
    model = adapted(model, structure).double()
    model.get_base_model().set_experts_implementation("eager")  # the grouped product knows 32 bits at most
    return model, structure


def step(model, optimizer, seed):
    optimizer.zero_grad()
    sequence_losses(model, token_ids(seed=seed)).sum().backward()
    optimizer.step()


def trainable(model):
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


@EVERY_CASE
def test_adamw_goes_on_after_a_cut_as_it_does_under_masks(row, kinds):
    model, structure = in_double(row, kinds)
    plan = uniform_plan(structure)
    other = copy.deepcopy(model)
    optimizers = [torch.optim.AdamW(trainable(m), lr=0.01) for m in (model, other)]
    for m, optimizer in zip((model, other), optimizers, strict=True):
        for seed in range(2):
            step(m, optimizer, seed)
    slice_(model, structure, Plan.full(structure), plan, optimizers[0])
    with masked(other, structure, plan):
        for seed in range(2, 5):
            for m, optimizer in zip((model, other), optimizers, strict=True):
                step(m, optimizer, seed)
        torch.testing.assert_close(logits(model, row.inputs()), logits(other, row.inputs()), rtol=1e-5, atol=1e-5)


@EVERY_CASE
def test_the_state_of_the_optimizer_is_cut_like_the_factors_that_it_belongs_to(row, kinds):
    model, structure = in_double(row, kinds)
    optimizer = torch.optim.AdamW(trainable(model), lr=0.01)
    step(model, optimizer, 0)
    for parameter in trainable(model):
        optimizer.state[parameter]["exp_avg"].copy_(parameter.detach())
        optimizer.state[parameter]["exp_avg_sq"].copy_(parameter.detach().square())
    slice_(model, structure, Plan.full(structure), uniform_plan(structure), optimizer)
    for parameter in trainable(model):
        assert torch.equal(optimizer.state[parameter]["exp_avg"], parameter)
        assert torch.equal(optimizer.state[parameter]["exp_avg_sq"], parameter.square())


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_each_expert_keeps_its_own_channels_of_base_and_factors(row):
    model = row.model()
    structure = structure_of(model, ("expert_channels",))
    dimension = next(d for d in structure if d.consumer.stacked)
    model = adapted(model, structure)
    before = copy.deepcopy(model).get_base_model().get_submodule(dimension.consumer.module)
    plan = uniform_plan(structure)
    slice_(model, structure, Plan.full(structure), plan)
    after = model.get_base_model().get_submodule(dimension.consumer.module)
    for expert in range(4):
        kept = [group - expert * 32 for group in plan.kept[dimension.name] if group // 32 == expert]
        rows = [*kept, *(32 + channel for channel in kept)]  # of gate, then of up
        old, new = before.get_base_layer(), after.get_base_layer()
        assert torch.equal(new.gate_up_proj[expert], old.gate_up_proj[expert][rows])
        assert torch.equal(new.down_proj[expert], old.down_proj[expert][:, kept])
        for parameter, index in (("gate_up_proj", rows), ("down_proj", kept)):
            (a, b), (old_a, old_b) = (
                (
                    wrapper.lora_A["default"].weight.view(4, 3, -1)[expert],
                    wrapper.lora_B["default"].weight.view(-1, 3, 4)[..., expert],
                )
                for wrapper in (adapter_of(after, parameter), adapter_of(before, parameter))
            )
            assert torch.equal(a, old_a[:, index] if parameter == "down_proj" else old_a)
            assert torch.equal(b, old_b if parameter == "down_proj" else old_b[index])
