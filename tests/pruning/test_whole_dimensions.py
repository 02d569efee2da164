"""Whole blocks, and the hidden size, in a training run: alone, interrupted, masked."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.pruning.runs import StopAfter, adapted_model, pruned, pruning_config, train
from tests.thinned import thinned

from loraprune import PruningCallback

pytestmark = pytest.mark.filterwarnings("ignore:Training ended")

KINDS = {"blocks": {"num_hidden_layers": 4}, "hidden": {}}


def config_of(kind: str, criterion: str, **changes):
    return pruning_config(dimensions=(kind,), criterion=criterion, **changes)


def model_of(kind: str):
    return adapted_model(dropout=0.1, **KINDS[kind])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("criterion", thinned(["fisher", "lora", "magnitude"]))
@pytest.mark.parametrize("step", thinned([4, 2, 8]))
def test_interrupted_and_resumed_ends_as_uninterrupted(tmp_path: Path, kind: str, criterion: str, step: int) -> None:
    whole, expected = pruned(tmp_path / "whole", config_of(kind, criterion), model=model_of(kind))
    first = PruningCallback(config_of(kind, criterion))
    train(tmp_path / "cut", [first, StopAfter(step)], model=model_of(kind))
    model, callback = model_of(kind), PruningCallback(config_of(kind, criterion))
    checkpoint = tmp_path / "cut" / f"checkpoint-{step}"
    callback.restore_(model, checkpoint)
    outcome = train(tmp_path / "cut", [callback], model=model, resume=checkpoint)
    assert callback.run is not None
    assert whole.run is not None
    assert callback.run.plan == whole.run.plan
    assert callback.run.ratio == pytest.approx(0.5, abs=0.05)
    assert outcome.losses == expected.losses
    assert outcome.weights.keys() == expected.weights.keys()
    assert all(torch.equal(value, expected.weights[name]) for name, value in outcome.weights.items())


@pytest.mark.parametrize("kind", KINDS)
def test_masks_end_as_the_same_cut(tmp_path: Path, kind: str) -> None:
    callback, outcome = pruned(tmp_path, config_of(kind, "fisher", repair="none", apply="mask"), model=model_of(kind))
    assert callback.run is not None
    assert callback.run.ratio == pytest.approx(0.5, abs=0.05)
    base = outcome.model.get_base_model()
    assert len(base.model.layers) == base.config.num_hidden_layers
