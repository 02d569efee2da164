from __future__ import annotations

import copy

import pytest
import torch
from tests.models import sequence_losses, token_ids
from tests.zoo.experts import ROWS
from tests.zoo.row import adapted, structure_of

from loraprune.importance.baselines import RandomCriterion
from loraprune.importance.fisher import FisherCriterion
from loraprune.importance.lora import LoraCriterion
from loraprune.importance.magnitude import MagnitudeCriterion
from loraprune.layers.unwrap import adapter_of
from loraprune.structure.plan import Plan

CRITERIA = {
    "fisher": FisherCriterion,
    "lora": LoraCriterion,
    "magnitude": MagnitudeCriterion,
    "random": RandomCriterion,
}
KINDS = (("expert_channels",), ("experts",))
EVERY_CASE = pytest.mark.parametrize(
    ("row", "kinds"), [(row, kinds) for row in ROWS for kinds in KINDS], ids=lambda value: getattr(value, "name", None)
)
IDS = token_ids(4, 9)


def scores_of(criterion, model, structure):
    criterion.attach(model, structure)
    model.zero_grad()
    sequence_losses(model, IDS).sum().backward()
    scores = criterion.scores(Plan.full(structure))
    criterion.detach()
    return scores


def inside(structure):
    return [d for d in structure if d.consumer.stacked or d.consumer.axis == "experts"]


def over_groups(dimension, gate_up, down):
    """Sums of values of the size of the experts' weights over the channels of each, or over whole experts."""
    if dimension.consumer.axis == "experts":
        return gate_up.sum((1, 2)) + down.sum((1, 2))
    gate, up = gate_up.sum(2).chunk(2, dim=1)
    return (gate + up + down.sum(1)).flatten()


@EVERY_CASE
@pytest.mark.parametrize("name", CRITERIA)
def test_every_group_gets_a_finite_score_and_the_model_stays_as_it_was(row, kinds, name):
    model = row.model()
    structure = structure_of(model, kinds)
    model = adapted(model, structure)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    scores = scores_of(CRITERIA[name](), model, structure)
    assert {key: values.shape for key, values in scores.items()} == {d.name: (d.num_groups,) for d in structure}
    for values in scores.values():
        assert torch.isfinite(values).all()
        assert values.max() > 0 <= values.min()
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    again = scores_of(CRITERIA[name](), model, structure)
    assert all(torch.equal(values, again[key]) for key, values in scores.items())


@EVERY_CASE
def test_magnitude_is_the_sum_of_the_squared_merged_weights(row, kinds):
    model = row.model()
    structure = structure_of(model, kinds)
    model = adapted(model, structure)
    scores = scores_of(MagnitudeCriterion(), model, structure)
    merged = copy.deepcopy(model).merge_and_unload()
    for d in inside(structure):
        experts = merged.get_submodule(d.consumer.module)
        expected = over_groups(d, experts.gate_up_proj.square(), experts.down_proj.square())
        torch.testing.assert_close(scores[d.name], expected.detach(), rtol=1e-4, atol=1e-6)


def importance_by_hand(experts, parameter, base):
    """``(W · s(gB·A + B·gA − gB·gA))²`` of all experts at once, from the factors as peft lays them out."""
    adapter = adapter_of(experts, parameter)
    (a, b), scaling = (adapter.lora_A["default"].weight, adapter.lora_B["default"].weight), adapter.scaling["default"]
    (a, grad_a), (b, grad_b) = (
        [value.detach().reshape(4, -1, a.shape[1]) for value in (a, a.grad)],
        [value.detach().reshape(b.shape[0], -1, 4) for value in (b, b.grad)],
    )

    def product(left, right):
        return torch.einsum("ore,eri->eoi", left, right)

    gradient = scaling * (product(grad_b, a) + product(b, grad_a) - product(grad_b, grad_a))
    return (base + scaling * product(b, a)) * gradient


@EVERY_CASE
@pytest.mark.parametrize("form", ["squared", "absolute"])
def test_the_lora_criterion_estimates_the_gradient_of_every_expert(row, kinds, form):
    model = row.model()
    structure = structure_of(model, kinds)
    model = adapted(model, structure)
    scores = scores_of(LoraCriterion(form), model, structure)
    for d in inside(structure):
        experts = model.get_base_model().get_submodule(d.consumer.module)
        layer = experts.get_base_layer()
        values = [
            importance_by_hand(experts, name, getattr(layer, name).detach()) for name in ("gate_up_proj", "down_proj")
        ]
        nothing = [torch.zeros_like(value) for value in values]
        if form == "squared":
            expected = over_groups(d, values[0].square(), values[1].square())
        else:
            parts = [over_groups(d, values[0].abs(), nothing[1]), over_groups(d, nothing[0], values[1].abs())]
            expected = sum(part / (part.norm() + 1e-8) for part in parts)
        torch.testing.assert_close(scores[d.name], expected, rtol=1e-3, atol=1e-6 * expected.max().item())


@pytest.mark.parametrize("kinds", KINDS)
def test_the_lora_criterion_says_how_experts_are_adapted_where_they_are_not(kinds):
    row = ROWS[0]
    model = row.model()
    structure = structure_of(model, kinds)
    attention = adapted(row.model(), structure_of(model, ("heads",)))
    with pytest.raises(ValueError, match=rf"layers\.0\.{kinds[0]} has none\. Adapt the experts \(target_parameters"):
        LoraCriterion().attach(attention, structure)
