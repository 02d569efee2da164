from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.models import FAMILIES, factors, projections, sequence_losses, tiny_model, token_ids, with_lora
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from loraprune.importance import reductions
from loraprune.importance.configs import LoraGuided
from loraprune.importance.lora import LoraCriterion, estimated_gradient, layer_importance
from loraprune.layers.lora import row_blocks
from loraprune.structure.describe import describe
from loraprune.structure.dimensions import Member
from loraprune.structure.plan import Plan
from loraprune.surgery.slicing import slice_

MEMBERS = {
    "heads": ("q_proj", "k_proj", "v_proj", "o_proj"),
    "channels": ("gate_proj", "up_proj", "down_proj"),
}


def trained(family="llama", **changes):
    """A model with LoRA and gradients."""
    model = with_lora(tiny_model(family, head_dim=6), **changes)
    sequence_losses(model, token_ids()).sum().backward()
    return model


def weight_importance(module, power):
    """Eq. 10 in NumPy, for every weight of a layer."""
    parts = [factors(module, adapter) for adapter in module.active_adapters]
    weight = module.base_layer.weight.detach().numpy().astype(float)
    gradient = np.zeros_like(weight)
    for adapter, (a, b) in zip(module.active_adapters, parts, strict=True):
        grad_a, grad_b = a.grad.numpy().astype(float), b.grad.numpy().astype(float)
        a, b = a.detach().numpy().astype(float), b.detach().numpy().astype(float)
        scaling = module.scaling[adapter]
        weight = weight + scaling * b @ a
        gradient += scaling * (grad_b @ a + b @ grad_a - grad_b @ grad_a)
    return np.abs(gradient * weight) ** power


def group_importance(module, name, num_groups, power):
    """The weights' importance, summed over the rows (of o and down: the columns) of each group."""
    importance = weight_importance(module, power)
    per_feature = importance.sum(0) if name in ("o_proj", "down_proj") else importance.sum(1)
    return per_feature.reshape(num_groups, -1).sum(1)


def expected_scores(model, form, groups=None):
    groups = groups or {"heads": 4, "channels": 24}
    scores = {}
    for layer in range(2):
        linears = projections(model, layer)
        for kind, names in MEMBERS.items():
            total = 0.0
            for name in names:
                part = group_importance(linears[name], name, groups[kind], 2 if form == "squared" else 1)
                total = total + (part / np.linalg.norm(part) if form == "absolute" else part)
            scores[f"layers.{layer}.{kind}"] = total
    return scores


def lora_scores(model, form="squared"):
    structure, criterion = describe(model), LoraCriterion(form)
    criterion.attach(model, structure)
    return criterion.scores(Plan.full(structure))


def assert_same(actual, expected):
    assert set(actual) == set(expected)
    for name, values in expected.items():
        np.testing.assert_allclose(actual[name].numpy(), values, rtol=1e-4, err_msg=name)


@pytest.mark.parametrize("form", ["squared", "absolute"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_scores_are_those_of_equation_10_summed_over_each_group(family, form):
    model = trained(family)
    assert projections(model, 0)["q_proj"].scaling["default"] == pytest.approx(4 / 3)
    assert_same(lora_scores(model, form), expected_scores(model, form))


def test_the_estimate_is_the_change_of_the_weight_by_one_step_of_the_factors():
    a, b, grad_a, grad_b = (torch.randn(shape) for shape in ((3, 7), (5, 3), (3, 7), (5, 3)))
    change = 2.0 * (b @ a) - 2.0 * ((b - grad_b) @ (a - grad_a))
    torch.testing.assert_close(estimated_gradient(a, b, grad_a, grad_b, 2.0), change, rtol=1e-5, atol=1e-5)


def test_all_active_adapters_count():
    model = with_lora(tiny_model())
    model.add_adapter("second", model.peft_config["default"])
    for layer in range(2):
        for module in projections(model, layer).values():
            for factor in ("lora_A", "lora_B"):
                torch.nn.init.normal_(getattr(module, factor)["second"].weight, std=0.3)
    model.base_model.set_adapter(["default", "second"])
    sequence_losses(model, token_ids()).sum().backward()
    assert_same(lora_scores(model), expected_scores(model, "squared"))


def test_layers_without_lora_add_nothing():
    model = trained(target_modules=["v_proj", "down_proj"])
    scores = lora_scores(model)
    for layer in range(2):
        linears = projections(model, layer)
        expected = group_importance(linears["v_proj"], "v_proj", 4, 2)
        np.testing.assert_allclose(scores[f"layers.{layer}.heads"].numpy(), expected, rtol=1e-4)
        expected = group_importance(linears["down_proj"], "down_proj", 24, 2)
        np.testing.assert_allclose(scores[f"layers.{layer}.channels"].numpy(), expected, rtol=1e-4)


def test_a_sliced_model_is_scored_over_the_groups_that_stay(structure):
    model = with_lora(tiny_model())
    full = Plan.full(structure)
    plan = full.keep({d.name: [0, 2, 3] if d.kind == "heads" else range(6) for d in structure})
    slice_(model, structure, full, plan)
    sequence_losses(model, token_ids()).sum().backward()
    criterion = LoraCriterion()
    criterion.attach(model, structure)
    assert_same(criterion.scores(plan), expected_scores(model, "squared", {"heads": 3, "channels": 6}))


@pytest.mark.parametrize("form", ["squared", "absolute"])
@pytest.mark.parametrize("rows_in_a_block", [1, 3, 100])
def test_the_size_of_the_blocks_does_not_matter(monkeypatch, form, rows_in_a_block):
    model = trained()
    expected = lora_scores(model, form)
    blocks = []

    def small_blocks(rows, columns):
        found = row_blocks(rows, columns, rows_in_a_block * columns)
        blocks.extend(found)
        return found

    monkeypatch.setattr(reductions, "row_blocks", small_blocks)
    actual = lora_scores(model, form)
    assert max(block.stop - block.start for block in blocks) == min(rows_in_a_block, 48)
    for name, values in expected.items():
        torch.testing.assert_close(actual[name], values, rtol=1e-5, atol=0)


class LargestOutput(TorchDispatchMode):
    """Records the entries of the largest tensor that any operation gives."""

    def __init__(self):
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        output = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(output):
            if isinstance(leaf, torch.Tensor):
                self.numel = max(self.numel, leaf.numel())
        return output


def test_no_temporary_is_larger_than_a_block_of_rows(monkeypatch):
    model = trained()
    module = projections(model, 0)["q_proj"]
    rows, columns = module.base_layer.weight.shape
    member = Member(module="q_proj", axis="output", segments=(rows // 4,))
    block = 8  # more than twice the rank: the factors are no larger
    monkeypatch.setattr(reductions, "row_blocks", lambda rows, columns: row_blocks(rows, columns, block * columns))
    with LargestOutput() as largest:
        layer_importance(module, member, 4, "squared")
    assert largest.numel == block * columns
    assert rows >= 4 * block


def test_there_are_no_scores_before_the_first_backward_pass():
    assert lora_scores(with_lora(tiny_model())) is None


def test_there_are_no_scores_while_a_dimension_has_no_gradient():
    model = trained()
    for module in (projections(model, 1)[name] for name in MEMBERS["channels"]):
        factors(module)[0].grad = None
    assert lora_scores(model) is None


def test_a_dimension_without_lora_is_refused_by_name(model):
    with pytest.raises(ValueError, match=r"needs LoRA .* layers\.0\.channels has none. .*'fisher'"):
        lora_scores(with_lora(model, target_modules=["q_proj", "o_proj"]))


def test_a_model_without_lora_is_refused(model):
    with pytest.raises(ValueError, match=r"layers\.0\.heads has none"):
        lora_scores(model)


def test_an_unknown_form_is_refused_with_those_there_are():
    with pytest.raises(ValueError, match="lora_form is 'cubed'; choose one of squared, absolute"):
        LoraGuided("cubed")
