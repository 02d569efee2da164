"""Wanda and FLAP in training: statistics of what enters the consumers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.models import projections, tiny_model, token_ids, with_lora

from loraprune.importance.configs import Flap, Wanda
from loraprune.layers.lora import effective_weight
from loraprune.structure.describe import describe
from loraprune.structure.plan import Plan

IDS = token_ids(3, 8)


@pytest.fixture
def model() -> Any:
    return with_lora(tiny_model("llama")).train()


def entered(model: Any, mask: torch.Tensor) -> torch.Tensor:
    """What enters down_proj of block 0 at the tokens that are no padding."""
    seen = []
    layer = projections(model, 0)["down_proj"]
    handle = layer.register_forward_pre_hook(lambda module, args: seen.append(args[0].detach()))
    model(input_ids=IDS, attention_mask=mask)
    handle.remove()
    return seen[0][mask.bool()]


@pytest.mark.parametrize("criterion", [Wanda, Flap])
@pytest.mark.parametrize("padded", [False, True])
def test_the_scores_are_the_formulas_of_what_enters(model: Any, criterion: Any, padded: bool) -> None:
    mask = torch.ones_like(IDS)
    if padded:
        mask[0, 5:] = 0
    inputs, weight = entered(model, mask), effective_weight(projections(model, 0)["down_proj"])
    structure = describe(model)
    watching = criterion().build()
    watching.attach(model, structure)
    model(input_ids=IDS, attention_mask=mask)
    with torch.no_grad():
        model(input_ids=IDS.flip(1))  # no training: it does not count
    scores = watching.scores(Plan.full(structure))
    assert scores is not None
    assert watching.scores(Plan.full(structure)) is None
    watching.detach()
    if criterion is Wanda:
        expected = weight.abs().sum(0) * inputs.square().mean(0).sqrt()
    else:
        expected = weight.square().sum(0) * (inputs - inputs.mean(0)).square().mean(0)
        expected = expected / expected.std()
    torch.testing.assert_close(scores["layers.0.channels"], expected, rtol=1e-4, atol=1e-6)


def test_recomputed_blocks_change_nothing(model: Any) -> None:
    structure = describe(model)
    found = []
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            model.enable_input_require_grads()
        watching = Flap().build()
        watching.attach(model, structure)
        model(input_ids=IDS, labels=IDS).loss.backward()
        found.append(watching.scores(Plan.full(structure)))
        watching.detach()
    for name, values in found[0].items():
        torch.testing.assert_close(found[1][name], values, rtol=1e-4, atol=1e-7)
