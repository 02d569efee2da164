"""Whole blocks go, and the layers around the gaps make up for them."""

from __future__ import annotations

import copy
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.checkpoints import tiny_checkpoint, tiny_tokenizer
from tests.models import logits_of, tiny_model
from torch import nn
from transformers import AutoModelForCausalLM, GraniteConfig

import loraprune
from loraprune import OneshotConfig, RunOptions
from loraprune.structure.describe import describe
from loraprune.structure.plan import Plan
from loraprune.surgery.refit import cut_and_repair_
from loraprune.surgery.repairs import NoRepair, Repair, Stream

NAME = "layers.blocks"
ROWS = list(torch.randint(0, 40, (48, 24), generator=torch.Generator().manual_seed(3)))
FRESH = torch.randint(0, 40, (16, 24), generator=torch.Generator().manual_seed(4))


def deep_model(**changes: Any) -> Any:
    return tiny_model(num_hidden_layers=5, **changes)


def without(model: Any, gone: set[int], repair: Repair, rows: Any = ROWS) -> nn.Module:
    cut = copy.deepcopy(model)
    structure = describe(cut, ("blocks",))
    plan = Plan({NAME: tuple(block for block in range(5) if block not in gone)})
    cut_and_repair_(cut, structure, Plan.full(structure), plan, calibration=rows, repair=repair)
    return cut


def distance(model: Any, other: Any) -> float:
    return float((logits_of(model, FRESH) - logits_of(other, FRESH)).norm())


@pytest.mark.parametrize("gone", [{0}, {2}, {4}, {1, 2}, {1, 3}, {3, 4}], ids=str)
def test_the_model_stays_nearer_to_the_uncut_one(gone: set[int]) -> None:
    dense = deep_model()
    plain, repaired = without(dense, gone, NoRepair()), without(dense, gone, Stream())
    assert distance(repaired, dense) < distance(plain, dense)
    shapes = {name: value.shape for name, value in plain.state_dict().items()}
    assert shapes == {name: value.shape for name, value in repaired.state_dict().items()}


@torch.no_grad()
def test_a_block_that_adds_nothing_leaves_nothing_to_make_up_for() -> None:
    dense = deep_model()
    for layer in (dense.model.layers[2].self_attn.o_proj, dense.model.layers[2].mlp.down_proj):
        layer.weight.zero_()
    torch.testing.assert_close(
        logits_of(without(dense, {2}, Stream()), FRESH), logits_of(dense, FRESH), rtol=1e-4, atol=1e-4
    )


def test_layers_before_the_gap_keep_their_weights_but_for_the_last_one() -> None:
    dense = deep_model()
    cut = without(dense, {2}, Stream())
    before, after = dense.state_dict(), cut.state_dict()
    changed = {name for name in after if name in before and not torch.equal(after[name], before[name])}
    early = {name for name in changed if name.startswith(("model.layers.0.", "model.layers.1."))}
    assert early == {"model.layers.1.mlp.down_proj.weight"}


def test_calibration_data_of_one_length_or_several_will_do() -> None:
    dense = deep_model()
    rows = [row[: 8 + index % 16] for index, row in enumerate(ROWS)]
    assert distance(without(dense, {2}, Stream(), rows), dense) < distance(without(dense, {2}, NoRepair()), dense)


class TestRecipe:
    @pytest.fixture(scope="class")
    def deep(self, tmp_path_factory: pytest.TempPathFactory) -> Path:
        return tiny_checkpoint(tmp_path_factory.mktemp("models") / "deep", num_hidden_layers=5)

    def test_stream_is_the_default_where_blocks_go(self, deep: Path, data: Path, tmp_path: Path) -> None:
        config = OneshotConfig(ratio=0.4, dimensions=("blocks",), calibration_sequences=16, max_length=32)
        options = RunOptions(output=tmp_path / "out", eval_sequences=0, latency=False)
        result = loraprune.oneshot(deep, data, config, options=options)
        assert result.metrics["pruning"]["repair"] == "stream"
        assert result.model.config.num_hidden_layers == 3
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
        torch.testing.assert_close(logits_of(loaded, FRESH), logits_of(result.model, FRESH))

    def test_several_cuts_are_repaired_one_after_the_other(self, deep: Path, data: Path) -> None:
        config = OneshotConfig(ratio=0.4, dimensions=("blocks",), cuts=2, calibration_sequences=16, max_length=32)
        result = loraprune.oneshot(deep, data, config, options=RunOptions(eval_sequences=0, latency=False))
        assert result.model.config.num_hidden_layers == 3

    @pytest.mark.parametrize("repair", ["refit", "bias", "stream+readers"])
    def test_other_repairs_are_refused(self, repair: str) -> None:
        with pytest.raises(ValueError, match=r"does not support whole blocks\. Use 'stream', which fits"):
            OneshotConfig(ratio=0.4, dimensions=("blocks",), repair=repair)

    def test_the_hidden_size_has_no_repair(self) -> None:
        assert OneshotConfig(ratio=0.4, dimensions=("hidden",)).repair.name == "none"
        with pytest.raises(ValueError, match="does not support the dimension 'hidden'"):
            OneshotConfig(ratio=0.4, dimensions=("hidden",), repair="stream")

    def test_where_blocks_do_more_than_add_nothing_is_repaired(
        self, data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        tokenizer = tiny_tokenizer()
        values = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4}
        config = GraniteConfig(vocab_size=len(tokenizer), num_key_value_heads=2, residual_multiplier=0.5, **values)
        AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
        tokenizer.save_pretrained(tmp_path)
        caplog.set_level(logging.INFO, logger="loraprune")
        asked = OneshotConfig(ratio=0.5, dimensions=("blocks",), calibration_sequences=8, max_length=32)
        result = loraprune.oneshot(tmp_path, data, asked, options=RunOptions(eval_sequences=0, latency=False))
        assert result.metrics["pruning"]["repair"] == "none"
        assert "so nothing is repaired" in caplog.text


def test_a_cut_of_ones_own_is_made_without_repair_where_blocks_do_more_than_add() -> None:
    config = GraniteConfig(
        vocab_size=40, hidden_size=32, intermediate_size=48, num_hidden_layers=5, num_attention_heads=4,
        num_key_value_heads=2, residual_multiplier=0.5,
    )  # fmt: skip
    torch.manual_seed(0)
    dense = AutoModelForCausalLM.from_config(config).eval()
    repaired, plain = without(dense, {2}, Stream()), without(dense, {2}, NoRepair())
    torch.testing.assert_close(logits_of(repaired, FRESH), logits_of(plain, FRESH))
