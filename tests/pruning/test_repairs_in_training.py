"""Every repair in the joint recipe: it helps, it survives an interruption, and the result is an ordinary checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.checkpoints import byte_model, tiny_checkpoint, write_texts
from tests.finished_run import QUICK
from tests.models import logits_of
from tests.pruning.runs import StopAfter, adapted_model, logits, make_trainer, pruning_config, rows, train
from tests.quantized_models import need, plain_folder, quantized
from transformers import AutoModelForCausalLM

import loraprune
from loraprune import Plan, PruningCallback, PruningConfig, RunOptions, describe, prune, save_pruned
from loraprune.pruning.group_run import GroupRun

REPAIRS = ("refit", "stream", "bias")
IDS = torch.tensor(rows()["input_ids"][:])


@pytest.mark.parametrize("repair", REPAIRS)
def test_a_repaired_cut_is_nearer_to_the_model_before_it(repair: str) -> None:
    dense = logits(byte_model())

    def error(repair: str) -> float:
        model = byte_model()
        run = GroupRun.of(model, pruning_config(criterion="magnitude", repair=repair, cuts=1))
        run.begin(model, 4, list(torch.tensor(rows(200)["input_ids"][:])))
        assert run.cut_if_due(4) is not None
        run.end()
        return float((logits(model) - dense).norm())

    assert error(repair) < error("none")


@pytest.mark.parametrize("repair", ["stream", "bias"])
def test_a_run_ends_with_a_stock_checkpoint(repair: str, tmp_path: Path) -> None:
    callback = PruningCallback(pruning_config(repair=repair))
    outcome = train(tmp_path / "run", [callback])
    expected = logits(outcome.model)
    assert callback.run is not None
    assert callback.run.summary()["refit_errors"] == [] if repair == "bias" else callback.run.summary()["refit_errors"]
    loaded = AutoModelForCausalLM.from_pretrained(save_pruned(callback, outcome.model, None, tmp_path / "out"))
    assert type(loaded).__name__ == "LlamaForCausalLM"
    assert (loaded.model.layers[0].self_attn.o_proj.bias is not None) == (repair == "bias")
    torch.testing.assert_close(logits(loaded), expected, rtol=0.0, atol=3e-5)


@pytest.mark.parametrize("repair", ["stream", "bias"])
def test_an_interrupted_run_ends_bitwise_as_one_without_a_stop(repair: str, tmp_path: Path) -> None:
    config = pruning_config(repair=repair)
    whole = train(tmp_path / "whole", [PruningCallback(config)])
    train(tmp_path / "run", [PruningCallback(config), StopAfter(5)])
    checkpoint, second = tmp_path / "run" / "checkpoint-5", PruningCallback(config)
    model = byte_model()
    second.restore_(model, checkpoint)
    base = adapted_on(model)
    resumed = train(tmp_path / "run", [second], resume=checkpoint, model=base)
    assert resumed.weights.keys() == whole.weights.keys()
    for name, weight in whole.weights.items():
        assert torch.equal(resumed.weights[name], weight), name


def adapted_on(model: Any) -> Any:
    from peft import get_peft_model
    from tests.pruning.runs import lora_config

    with torch.random.fork_rng():
        torch.manual_seed(1)
        return get_peft_model(model, lora_config())


@pytest.mark.parametrize("repair", ["stream", "bias", "none", "refit"])
def test_a_repair_is_in_the_record_and_comes_back_from_files(repair: str, tmp_path: Path) -> None:
    config = PruningConfig(repair=repair)
    saved = config.to_saved()
    assert saved["refit"] == {"refit": True, "none": False}.get(repair, repair)
    assert PruningConfig.from_saved(saved) == config


def test_a_recipe_with_biases_is_run_from_end_to_end(tmp_path: Path) -> None:
    tiny_checkpoint(tmp_path / "model")
    result = prune(
        tmp_path / "model",
        write_texts(tmp_path / "data.jsonl"),
        PruningConfig(ratio=0.5, repair="bias", calibration_sequences=8),
        training=QUICK,
        options=RunOptions(output=tmp_path / "out", eval_sequences=4, latency=False),
    )
    assert "repair `bias`" in result.card
    loaded = loraprune.load(tmp_path / "out")
    assert loaded.config.attention_bias
    torch.testing.assert_close(logits_of(loaded, IDS), logits_of(result.model, IDS), rtol=0.0, atol=3e-5)


class TestRefused:
    def test_what_is_no_repair(self) -> None:
        with pytest.raises(
            ValueError, match="There is no repair 'magic'; choose one of refit, stream, stream\\+readers, bias, none"
        ):
            PruningConfig(repair="magic")

    def test_biases_where_the_config_cannot_say_them(self) -> None:
        model = byte_model("qwen2")
        with pytest.raises(ValueError, match="Bias compensation needs a bias on"):
            GroupRun.of(model, pruning_config(repair="bias"))

    def test_biases_with_an_adapter_to_keep(self, tmp_path: Path) -> None:
        tiny_checkpoint(tmp_path / "model")
        with pytest.raises(ValueError, match="Leave --save-adapter out"):
            prune(
                tmp_path / "model",
                write_texts(tmp_path / "data.jsonl"),
                PruningConfig(repair="bias"),
                training=QUICK,
                options=RunOptions(output=tmp_path / "out", save_adapter=True),
            )
        assert not (tmp_path / "out").exists()

    def test_biases_on_a_quantized_base(self, tmp_path: Path) -> None:
        need("torchao-int8")
        model = quantized(plain_folder(tmp_path), "torchao-int8")
        with pytest.raises(ValueError, match="which a quantized base does not support"):
            GroupRun.of(model, pruning_config(repair="bias"))


def test_blocks_are_cut_without_a_repair_whatever_was_asked_for() -> None:
    model = byte_model(num_hidden_layers=4)
    run = GroupRun.of(model, pruning_config(dimensions=["blocks"], repair="bias", criterion="magnitude"))
    assert not run.refits
    assert model.model.layers[0].self_attn.o_proj.bias is None
    assert Plan.full(describe(model, ["blocks"])) == run.plan


def test_the_model_without_a_cut_gets_no_biases(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, [PruningCallback(pruning_config(ratio=0.0, repair="bias"))], model=adapted_model())
    trainer.train()
    assert trainer.model.get_base_model().model.layers[0].mlp.down_proj.base_layer.bias is None
