from __future__ import annotations

import pytest
import torch
from tests.models import factors, projections, sequence_losses, tiny_model, token_ids, with_lora

from loraprune.importance.baselines import PositionCriterion
from loraprune.importance.configs import Magnitude, Position, Taylor
from loraprune.importance.lora import LoraCriterion, estimated_gradient
from loraprune.importance.magnitude import MagnitudeCriterion
from loraprune.importance.whole_blocks import WholeBlocks, built_for
from loraprune.pruning.gradients import gradient_scores
from loraprune.structure.describe import describe
from loraprune.structure.plan import Plan
from loraprune.surgery.slicing import slice_

IDS = token_ids(4, 9)
NAME = "layers.blocks"


@pytest.fixture
def adapted():
    return with_lora(tiny_model(num_hidden_layers=3))


def effective(module):
    a, b = factors(module)
    return module.base_layer.weight + module.scaling["default"] * b @ a


def scores_of(criterion, model, plan=None):
    structure = describe(tiny_model(num_hidden_layers=3), ("blocks",))
    wrapped = WholeBlocks(criterion)
    wrapped.attach(model, structure)
    scores = wrapped.scores(plan or Plan.full(structure))
    wrapped.detach()
    return scores[NAME]


@torch.no_grad()
def test_the_magnitude_of_a_block_is_that_of_all_weights_of_its_linear_layers(adapted):
    expected = [
        sum(effective(module).square().sum() for module in projections(adapted, layer).values()) for layer in range(3)
    ]
    torch.testing.assert_close(scores_of(MagnitudeCriterion(), adapted), torch.stack(expected))


def test_lora_sums_over_all_linear_layers_of_a_block(adapted):
    sequence_losses(adapted, IDS).mean().backward()
    with torch.no_grad():
        expected = []
        for layer in range(3):
            total = torch.zeros(())
            for module in projections(adapted, layer).values():
                a, b = factors(module)
                gradient = estimated_gradient(a, b, a.grad, b.grad, module.scaling["default"])
                total += (effective(module) * gradient).square().sum()
            expected.append(total)
    torch.testing.assert_close(scores_of(LoraCriterion(), adapted), torch.stack(expected), rtol=1e-4, atol=1e-9)


def test_taylor_sums_over_all_linear_layers_of_a_block():
    model = tiny_model(num_hidden_layers=3)
    structure = describe(model, ("blocks",))
    found = gradient_scores(model, structure, Plan.full(structure), list(IDS), Taylor())[NAME]
    sequence_losses(model, IDS).mean().backward()
    expected = [
        sum((module.weight * module.weight.grad).square().sum() for module in projections(model, layer).values())
        for layer in range(3)
    ]
    torch.testing.assert_close(found, torch.stack(expected).detach(), rtol=1e-4, atol=1e-9)


def test_scores_follow_the_blocks_over_a_cut(adapted):
    structure = describe(adapted, ("blocks",))
    plan = Plan.full(structure).keep({NAME: [0, 2]})
    wrapped = WholeBlocks(MagnitudeCriterion())
    wrapped.attach(adapted, structure)
    before = wrapped.scores(Plan.full(structure))[NAME]
    slice_(adapted, structure, Plan.full(structure), plan)
    assert torch.equal(wrapped.scores(plan)[NAME], before[[0, 2]])


def test_a_block_without_an_adapter_is_refused_by_lora():
    model = with_lora(tiny_model(num_hidden_layers=3), layers_to_transform=[0, 1])
    with pytest.raises(ValueError, match=f"{NAME}.2 has none"):
        scores_of(LoraCriterion(), model)


def test_only_criteria_that_read_weights_are_wrapped():
    model = tiny_model(num_hidden_layers=3)
    blocks, inner = describe(model, ("blocks",)), describe(model)
    assert isinstance(built_for(Magnitude(), blocks), WholeBlocks)
    assert isinstance(built_for(Magnitude(), inner), MagnitudeCriterion)
    assert isinstance(built_for(Position(), blocks), PositionCriterion)


def test_places_fall_with_the_number_of_a_block():
    structure = describe(tiny_model(num_hidden_layers=3), ("blocks",))
    criterion = PositionCriterion()
    criterion.attach(tiny_model(num_hidden_layers=3), structure)
    assert criterion.scores(Plan.full(structure).keep({NAME: [0, 2]}))[NAME].tolist() == [3.0, 1.0]
