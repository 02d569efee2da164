from __future__ import annotations

import contextlib

import numpy as np
import pytest
import torch
from tests.models import FAMILIES, factors, projections, sequence_losses, tiny_model, token_ids, with_lora
from tests.zoo import ROWS
from torch import nn

from loraprune.importance import reductions
from loraprune.importance.taylor import base_gradients, summed_taylor, taylor_scores
from loraprune.layers.lora import row_blocks
from loraprune.layers.unwrap import base_model
from loraprune.structure.describe import describe
from loraprune.structure.dimensions import Member
from loraprune.structure.plan import Plan
from loraprune.surgery.slicing import slice_

BATCHES = [token_ids(2, 9, seed=seed) for seed in range(2)]


def scores_of(model, structure=None, plan=None):
    structure = structure or describe(model)
    with base_gradients(model, structure):
        for ids in BATCHES:
            sequence_losses(model, ids).sum().backward()
        return taylor_scores(model, structure, plan or Plan.full(structure))


def gradients(model, weights):
    """Of the loss over all batches, from autograd, without leaving anything in the parameters."""
    for weight in weights:
        weight.requires_grad_(True)
    return torch.autograd.grad(sum(sequence_losses(model, ids).sum() for ids in BATCHES), weights)


def expected_scores(model, heads=4, channels=24):
    """Sums over the rows (of o and down: the columns) of each group, in NumPy."""
    scores = {}
    for layer in range(2):
        linears = projections(model, layer)
        weights = [getattr(linear, "base_layer", linear).weight for linear in linears.values()]
        found = dict(zip(linears, zip(linears.values(), gradients(model, weights), strict=True), strict=True))
        importance = {}
        for name, (linear, gradient) in found.items():
            weight = getattr(linear, "base_layer", linear).weight.detach().numpy().astype(float)
            if hasattr(linear, "base_layer"):
                a, b = (factor.detach().numpy().astype(float) for factor in factors(linear))
                weight = weight + 4 / 3 * b @ a
            squares = (gradient.numpy() * weight) ** 2
            importance[name] = squares.sum(0 if name in ("o_proj", "down_proj") else 1)
        attention = [importance[name].reshape(heads, -1).sum(1) for name in ("q_proj", "k_proj", "v_proj", "o_proj")]
        scores[f"layers.{layer}.heads"] = sum(attention)
        scores[f"layers.{layer}.channels"] = sum(importance[name] for name in ("gate_proj", "up_proj", "down_proj"))
    return scores


def assert_same(actual, expected):
    assert set(actual) == set(expected)
    for name, values in expected.items():
        assert actual[name].dtype == torch.float32
        np.testing.assert_allclose(actual[name].numpy(), values, rtol=1e-4, err_msg=name)


@pytest.mark.parametrize("adapted", [False, True], ids=["plain", "lora"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_score_adds_up_squared_products_of_weight_and_gradient(family, adapted):
    model = tiny_model(family, head_dim=6)
    model = with_lora(model) if adapted else model
    assert_same(scores_of(model), expected_scores(model))


def row_named(name):
    return next(row for row in ROWS if row.name == name)


@pytest.mark.parametrize("kind", ["expert_channels", "experts"])
def test_stacked_experts_are_scored_by_the_gradient_of_the_stack(kind):
    model = row_named("mixtral").model()
    structure = describe(model, (kind,))
    actual = scores_of(model, structure)
    for layer, block in enumerate(model.model.layers):
        experts = next(module for module in block.modules() if hasattr(module, "gate_up_proj"))
        weights = [experts.gate_up_proj, experts.down_proj]
        found = zip(gradients(model, weights), weights, strict=True)
        gate_up, down = ((gradient * weight).square().detach().double().numpy() for gradient, weight in found)
        if kind == "experts":
            expected = gate_up.sum((1, 2)) + down.sum((1, 2))
        else:
            gate, up = np.split(gate_up.sum(2), 2, axis=1)
            expected = (gate + up + down.sum(1)).reshape(-1)
        (dimension,) = structure.of_layer(layer)
        np.testing.assert_allclose(actual[dimension.name].numpy(), expected, rtol=1e-4)


def test_layers_that_store_their_weight_transposed_are_scored_by_their_outputs_and_inputs():
    model = row_named("gpt2").model()
    actual = scores_of(model)
    for layer, block in enumerate(model.transformer.h):
        weights = [block.mlp.c_fc.weight, block.mlp.c_proj.weight]
        fc, proj = ((g * w).square().detach().double() for g, w in zip(gradients(model, weights), weights, strict=True))
        expected = fc.sum(0) + proj.sum(1)
        np.testing.assert_allclose(actual[f"layers.{layer}.channels"].numpy(), expected.numpy(), rtol=1e-4)


@pytest.mark.parametrize("transposed", [False, True])
def test_stacked_experts_that_store_their_weight_transposed_are_scored_by_their_outputs(transposed):
    experts = nn.Module()
    experts.is_transposed = transposed
    values, gradient = torch.randn(3, 4, 6), torch.randn(3, 4, 6)  # (experts, out, in)
    experts.up = nn.Parameter(values.mT.contiguous() if transposed else values)
    experts.up.grad = gradient.mT.contiguous() if transposed else gradient
    member = Member(module="", axis="output", segments=(2,), parameter="up", stacked=True)
    expected = (values * gradient).square().view(6, 2, 6).sum((1, 2))
    torch.testing.assert_close(summed_taylor(experts, member, 6), expected)


def test_the_size_of_the_blocks_does_not_matter(monkeypatch, model):
    expected = scores_of(model)
    monkeypatch.setattr(reductions, "row_blocks", lambda rows, columns: row_blocks(rows, columns, 5 * columns))
    assert_same(scores_of(model), {name: values.numpy() for name, values in expected.items()})


def test_only_the_groups_that_are_kept_get_scores(model, structure):
    full = Plan.full(structure)
    plan = full.keep({d.name: [1, 3] if d.kind == "heads" else [0, 7, 9] for d in structure})
    slice_(model, structure, full, plan)
    assert_same(scores_of(model, structure, plan), expected_scores(model, heads=2, channels=3))


def test_reading_the_scores_changes_neither_weights_nor_gradients(model, structure):
    with base_gradients(model, structure):
        sequence_losses(model, BATCHES[0]).sum().backward()
        before = [(p.detach().clone(), None if p.grad is None else p.grad.clone()) for p in model.parameters()]
        taylor_scores(model, structure, Plan.full(structure))
        for parameter, (value, gradient) in zip(model.parameters(), before, strict=True):
            assert torch.equal(parameter, value)
            assert gradient is None or torch.equal(parameter.grad, gradient)


def test_a_weight_without_gradient_is_named(model, structure):
    with pytest.raises(ValueError, match=r"layers\.0\.self_attn\.q_proj\.weight has no gradient.*base_gradients"):
        taylor_scores(model, structure, Plan.full(structure))


@pytest.mark.parametrize("adapted", [False, True], ids=["plain", "lora"])
def test_exactly_the_weights_of_the_groups_get_gradients(model, adapted):
    model = with_lora(model) if adapted else model
    structure = describe(model)
    with base_gradients(model, structure):
        sequence_losses(model, BATCHES[0]).sum().backward()
        names = {name for name, parameter in base_model(model).named_parameters() if parameter.grad is not None}
    inner = ".base_layer" if adapted else ""
    attention = {f"model.layers.{layer}.self_attn.{n}_proj{inner}.weight" for layer in range(2) for n in "qkvo"}
    ffn = {f"model.layers.{layer}.mlp.{n}_proj{inner}.weight" for layer in range(2) for n in ("gate", "up", "down")}
    assert names == attention | ffn


def test_afterwards_the_flags_are_back_and_the_gradients_gone_even_after_an_error(model):
    adapted = with_lora(model)
    structure = describe(adapted)
    flags = {name: parameter.requires_grad for name, parameter in adapted.named_parameters()}
    assert set(flags.values()) == {True, False}
    with contextlib.suppress(KeyError), base_gradients(adapted, structure):
        sequence_losses(adapted, BATCHES[0]).sum().backward()
        raise KeyError
    assert {name: parameter.requires_grad for name, parameter in adapted.named_parameters()} == flags
    assert all(parameter.grad is None for parameter in adapted.parameters())


def test_gradients_from_before_are_not_added_to(model, structure):
    expected = scores_of(model)
    sequence_losses(model, BATCHES[0]).sum().backward()
    embedding = model.get_input_embeddings().weight.grad.clone()
    assert_same(scores_of(model), {name: values.numpy() for name, values in expected.items()})
    assert torch.equal(model.get_input_embeddings().weight.grad, embedding)


def test_a_quantized_weight_is_refused_with_the_way_out(model, structure):
    layer = model.model.layers[1].mlp.up_proj
    layer.weight = nn.Parameter(layer.weight.to(torch.int8), requires_grad=False)
    flags = [parameter.requires_grad for parameter in model.parameters()]
    with (
        pytest.raises(ValueError, match=r"layers\.1\.mlp\.up_proj\.weight, which is quantized \(torch\.int8\).*fisher"),
        base_gradients(model, structure),
    ):
        raise AssertionError("no weight may be read")
    assert [parameter.requires_grad for parameter in model.parameters()] == flags
