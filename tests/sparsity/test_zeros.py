from __future__ import annotations

import copy

import pytest
import torch
from tests.models import tiny_model
from tests.zoo.experts import ROWS as MIXTURES
from torch import nn
from transformers import PreTrainedModel

from loraprune.sparsity.zeros import zeros_of
from loraprune.structure.describe import describe
from loraprune.structure.dimensions import Structure


def zero_(weight: torch.Tensor, count: int) -> None:
    """Zero the first weights of a tensor, whatever its shape."""
    with torch.no_grad():
        weight.view(-1)[:count] = 0.0


def test_zeros_are_counted_by_kind_of_matrix(model: PreTrainedModel, structure: Structure) -> None:
    layers = model.model.layers
    zero_(layers[0].mlp.down_proj.weight, 100)
    zero_(layers[1].mlp.down_proj.weight, 20)
    zero_(layers[1].self_attn.q_proj.weight, 7)
    found = zeros_of(model, structure)
    size = 2 * layers[0].mlp.down_proj.weight.numel()
    assert found.weights["mlp.down_proj"] == size
    assert {kind: count for kind, count in found.zeros.items() if count} == {
        "mlp.down_proj": 120,
        "self_attn.q_proj": 7,
    }
    assert found.count == 127
    assert found.share == 127 / sum(found.weights.values())
    plain = found.to_json()
    assert plain["kinds"]["mlp.down_proj"] == 120 / size
    assert (plain["zeros"], plain["weights"], plain["share"]) == (127, sum(found.weights.values()), found.share)


def test_only_linear_layers_of_the_blocks_count(model: PreTrainedModel, structure: Structure) -> None:
    linear = [m.weight for m in model.model.layers.modules() if isinstance(m, nn.Linear)]
    for name, parameter in model.named_parameters():
        if not any(parameter is weight for weight in linear):
            zero_(parameter, parameter.numel())
            assert zeros_of(model, structure).count == 0, name
    assert sum(zeros_of(model, structure).weights.values()) == sum(weight.numel() for weight in linear)


def test_one_sparse_matrix_makes_a_model_sparse(model: PreTrainedModel, structure: Structure) -> None:
    assert not zeros_of(model, structure).are_sparsity
    weight = model.model.layers[1].self_attn.v_proj.weight
    zero_(weight, weight.numel() // 2)
    assert zeros_of(model, structure).are_sparsity


def test_a_few_stray_zeros_are_no_sparsity(model: PreTrainedModel, structure: Structure) -> None:
    for module in model.model.layers.modules():
        if isinstance(module, nn.Linear):
            zero_(module.weight, 1)
    found = zeros_of(model, structure)
    assert found.count > 0
    assert not found.are_sparsity


@pytest.mark.parametrize("row", MIXTURES, ids=lambda row: row.name)
def test_experts_count(row) -> None:
    model = row.model()
    structure = describe(model)
    before = zeros_of(model, structure)
    stack = next(p for name, p in model.named_parameters() if name.endswith("experts.down_proj"))
    zero_(stack, stack.numel() // 4)
    after = zeros_of(model, structure)
    assert after.count - before.count == stack.numel() // 4
    assert {kind for kind in after.zeros if after.zeros[kind] > before.zeros[kind]} == {"mlp.experts.down_proj"}
    assert after.are_sparsity


def test_counting_changes_nothing() -> None:
    model = tiny_model()
    before = copy.deepcopy(model.state_dict())
    zeros_of(model, describe(model))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
