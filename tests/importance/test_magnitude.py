from __future__ import annotations

import numpy as np
import pytest
from tests.models import FAMILIES, factors, projections, tiny_model, with_lora

from loraprune.importance import reductions
from loraprune.importance.magnitude import MagnitudeCriterion
from loraprune.layers.lora import row_blocks
from loraprune.structure.describe import describe
from loraprune.structure.plan import Plan


def magnitude_scores(model):
    structure, criterion = describe(model), MagnitudeCriterion()
    criterion.attach(model, structure)
    return criterion.scores(Plan.full(structure))


def expected_scores(model, adapted):
    scores = {}
    for layer in range(2):
        squares = {}
        for name, module in projections(model, layer).items():
            if adapted:
                a, b = (factor.detach().numpy().astype(float) for factor in factors(module))
                weight = module.base_layer.weight.detach().numpy() + 4 / 3 * b @ a
            else:
                weight = module.weight.detach().numpy().astype(float)
            squares[name] = (weight**2).sum(0 if name in ("o_proj", "down_proj") else 1)
        heads = sum(squares[name].reshape(4, -1).sum(1) for name in ("q_proj", "k_proj", "v_proj", "o_proj"))
        scores[f"layers.{layer}.heads"] = heads
        scores[f"layers.{layer}.channels"] = squares["gate_proj"] + squares["up_proj"] + squares["down_proj"]
    return scores


@pytest.mark.parametrize("adapted", [False, True], ids=["plain", "lora"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_scores_are_sums_of_squared_effective_weights(family, adapted):
    model = tiny_model(family, head_dim=6)
    model = with_lora(model) if adapted else model
    expected = expected_scores(model, adapted)
    actual = magnitude_scores(model)
    assert set(actual) == set(expected)
    for name, values in expected.items():
        np.testing.assert_allclose(actual[name].numpy(), values, rtol=1e-5)


def test_the_size_of_the_blocks_does_not_matter(monkeypatch, model):
    expected = magnitude_scores(model)
    monkeypatch.setattr(reductions, "row_blocks", lambda rows, columns: row_blocks(rows, columns, 5 * columns))
    actual = magnitude_scores(model)
    for name, values in expected.items():
        np.testing.assert_allclose(actual[name].numpy(), values.numpy(), rtol=1e-5)
