"""Whole blocks, and the hidden size, in both recipes: what is cut, what is saved, what is told."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.checkpoints import VOCABULARY, tiny_checkpoint
from tests.finished_run import QUICK
from tests.models import logits_of, token_ids
from tests.thinned import thinned
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from loraprune import OneshotConfig, PruningConfig, RunOptions, oneshot, prune
from loraprune.report.page import render_report

IDS = token_ids(2, 11, vocabulary=VOCABULARY)
KINDS = ("blocks", "hidden")
LAYERS = 4


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("models") / "deep", num_hidden_layers=LAYERS)


def joint(model: Path, data: Path, output: Path | None = None, **changes: Any) -> Any:
    values = {"ratio": 0.5, "calibration_sequences": 8, **changes}
    options = RunOptions(output=output, latency=False, prompt="the old river")
    return prune(model, data, PruningConfig(**values), training=QUICK, options=options)


def once(model: Path, data: Path | None, **changes: Any) -> Any:
    config = OneshotConfig(**{"ratio": 0.5, "calibration_sequences": 8, "max_length": 32, **changes})
    return oneshot(model, data, config, options=RunOptions(latency=False, eval_sequences=4))


@pytest.mark.parametrize("kind", KINDS)
def test_a_joint_run_leaves_a_stock_checkpoint_a_record_and_a_report(
    kind: str, deep: Path, data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="loraprune")
    result = joint(deep, data, tmp_path / "out", dimensions=(kind,))
    assert type(result.model) is LlamaForCausalLM
    assert result.metrics["pruning"]["ratio"] == pytest.approx(0.5, abs=0.02)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert torch.equal(logits_of(loaded, IDS), logits_of(result.model, IDS))
    assert loaded.num_parameters() == result.metrics["pruned"]["parameters"]
    assert "made without a repair" in caplog.text
    assert "repair `none`" in (tmp_path / "out" / "README.md").read_text()
    assert result.report.settings["pruning"]["refit"] is False
    assert "<svg" in render_report(result.report)


@pytest.mark.parametrize("criterion", thinned(["lora", "position", "magnitude", "random"], 2))
def test_every_criterion_cuts_blocks_to_the_ratio(criterion: str, deep: Path, data: Path) -> None:
    result = joint(deep, data, dimensions=("blocks",), criterion=criterion)
    assert result.model.config.num_hidden_layers == len(result.model.model.layers) == LAYERS // 2
    if criterion == "position":
        assert result.plan.kept["layers.blocks"] == (0, 1)


def test_the_report_and_the_card_say_which_blocks_stayed(deep: Path, data: Path, tmp_path: Path) -> None:
    result = joint(deep, data, tmp_path / "out", dimensions=("blocks",), keep_layers=(0, -1))
    assert result.plan.kept["layers.blocks"] == (0, 3)
    assert [(item.layer, item.kept) for item in result.report.layers] == [(0, 1), (1, 0), (2, 0), (3, 1)]
    assert "2 of 4 whole blocks are kept" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize("method", thinned(["fisher", "position", "taylor", "magnitude", "random"], 2))
@pytest.mark.parametrize("cuts", [1, 2])
def test_blocks_go_without_training_too(method: str, cuts: int, deep: Path, data: Path) -> None:
    result = once(deep, data, dimensions=("blocks",), criterion=method, cuts=cuts)
    assert len(result.model.model.layers) == LAYERS // 2
    assert result.metrics["pruning"]["repair"] == "stream"
    assert "<svg" in render_report(result.report)


@pytest.mark.parametrize("kind", KINDS)
def test_without_a_method_they_are_scored_by_fisher(kind: str) -> None:
    config = OneshotConfig(ratio=0.5, dimensions=(kind,))
    assert (config.name, config.repair.name) == ("fisher", {"blocks": "stream", "hidden": "none"}[kind])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", ["wanda", "flap", "osscar"])
def test_methods_that_look_at_a_consumer_are_refused(kind: str, method: str, deep: Path, data: Path) -> None:
    with pytest.raises(ValueError, match=f"'{method}' scores a group by the one layer that reads it"):
        once(deep, data, dimensions=(kind,), criterion=method)


@pytest.mark.parametrize("kind", KINDS)
def test_a_repair_that_was_asked_for_is_refused(kind: str) -> None:
    with pytest.raises(ValueError, match=r"does not support (whole blocks|the dimension)"):
        OneshotConfig(ratio=0.5, dimensions=(kind,), repair="refit")


def test_places_are_a_criterion_for_blocks_alone(deep: Path, data: Path) -> None:
    with pytest.raises(ValueError, match="--dimensions blocks"):
        joint(deep, data, criterion="position")
    with pytest.raises(ValueError, match="--dimensions blocks"):
        once(deep, None, criterion="position", repair="none")


def test_the_absolute_form_of_lora_says_nothing_of_blocks(deep: Path, data: Path) -> None:
    with pytest.raises(ValueError, match="all blocks would score the same"):
        joint(deep, data, dimensions=("blocks",), criterion="lora", lora_form="absolute")


@pytest.mark.parametrize("criterion", thinned(["lora", "magnitude", "random"]))
def test_every_criterion_cuts_the_hidden_size_to_the_ratio(criterion: str, deep: Path, data: Path) -> None:
    result = joint(deep, data, dimensions=("hidden",), criterion=criterion)
    assert result.model.config.hidden_size == result.plan.count("hidden") == result.model.lm_head.in_features
    assert result.metrics["pruning"]["ratio"] == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("method", thinned(["fisher", "magnitude", "taylor", "random"], 2))
def test_the_hidden_size_shrinks_without_training_too(method: str, deep: Path, data: Path) -> None:
    result = once(deep, data, dimensions=("hidden",), criterion=method, cuts=2)
    assert result.model.config.hidden_size == result.plan.count("hidden")
    assert result.metrics["pruning"]["ratio"] == pytest.approx(0.5, abs=0.05)
