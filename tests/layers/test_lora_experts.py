from __future__ import annotations

import copy

import pytest
import torch
from tests.layers.test_experts import make_experts, routing
from tests.zoo.experts import ROWS
from tests.zoo.row import adapted, structure_of
from torch import nn

from loraprune.layers.experts import expert_hidden
from loraprune.layers.lora import effective_expert_weight, expert_delta, expert_factors
from loraprune.layers.unwrap import adapter_of

PARAMETERS = ("gate_up_proj", "down_proj")


@pytest.fixture(params=ROWS, ids=lambda row: row.name)
def model(request):
    return adapted(request.param.model(), structure_of(request.param.model(), ("expert_channels",)))


def experts_of(model: nn.Module) -> list[nn.Module]:
    return [module for name, module in model.named_modules() if name.endswith("mlp.experts")]


def test_base_and_factors_of_one_expert_make_what_peft_merges(model):
    merged = copy.deepcopy(model).merge_and_unload()
    for before, after in zip(experts_of(model), experts_of(merged), strict=True):
        for parameter in PARAMETERS:
            expected = getattr(after, parameter)
            for expert in range(4):
                actual = effective_expert_weight(before, parameter, expert)
                torch.testing.assert_close(actual, expected[expert], rtol=1e-5, atol=1e-6)


def test_the_gradients_of_one_experts_factors_are_those_of_its_weight(model):
    """``W + s·B·A``: with G the gradient of W, that of A is ``s·Bᵀ·G`` and that of B ``s·G·Aᵀ``."""
    experts = experts_of(model)[0]
    for parameter in PARAMETERS:
        adapter = adapter_of(experts, parameter)
        delta = adapter.get_delta_weight("default")
        gradient = torch.randn(delta.shape, generator=torch.Generator().manual_seed(0))
        (delta * gradient).sum().backward()
        for expert in range(4):
            (f,) = expert_factors(experts, parameter, expert)
            torch.testing.assert_close(f.grad_a, f.scaling * f.b.T @ gradient[expert])
            torch.testing.assert_close(f.grad_b, f.scaling * gradient[expert] @ f.a.T)


def test_without_an_adapter_there_is_none_to_add():
    experts = make_experts("eager")
    assert expert_factors(experts, "down_proj", 0) == []
    assert expert_delta(experts, "down_proj", 0) is None
    weight = effective_expert_weight(experts, "down_proj", 1)
    assert torch.equal(weight, experts.down_proj[1])
    weight.zero_()
    assert experts.down_proj[1].abs().max() > 0


def test_weights_that_are_stored_the_other_way_round_are_turned():
    experts, (hidden, _, _) = make_experts("batched_mm", is_transposed=True, has_bias=True), routing()
    weight = effective_expert_weight(experts, "gate_up_proj", 2)
    inside = expert_hidden(experts, hidden, 2, weight)
    everything = torch.full((len(hidden), 1), 2), torch.ones(len(hidden), 1)
    output = inside @ effective_expert_weight(experts, "down_proj", 2).T + experts.down_proj_bias[2]
    torch.testing.assert_close(output, experts(hidden, *everything), rtol=1e-5, atol=1e-5)
