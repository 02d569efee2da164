"""Configs that say something else than the weights beside them: the weights are believed, or nothing is loaded."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from tests.checkpoints import VOCABULARY, byte_model, tiny_checkpoint, tiny_tokenizer
from tests.models import logits_of, token_ids
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from loraprune import CheckpointError, OneshotConfig, Plan, RunOptions, cut_, describe, oneshot, save
from loraprune.checkpoint.exports.checkpoint import read_checkpoint
from loraprune.checkpoint.source import ModelSource

CPU = torch.device("cpu")
IDS = token_ids(2, 12)


def change_config(folder: Path, **values: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def small_model(family: str, **changes: Any) -> Any:
    if family == "gpt2":
        return GPT2LMHeadModel(
            GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=VOCABULARY, n_positions=32, **changes)
        )
    return byte_model(family, **changes)


def wrongly_tied(folder: Path, family: str = "llama") -> torch.Tensor:
    """Save a model whose head is its own under a config that says it is the embedding; its logits."""
    model = small_model(family, tie_word_embeddings=False).eval()
    tiny_tokenizer().save_pretrained(folder)
    model.save_pretrained(folder)
    change_config(folder, tie_word_embeddings=True)
    return logits_of(model, IDS)


def plan_of(model: Any, kind: str) -> Plan:
    """A cut whose result is of a kind: the stock class's, ours, a related class's, or with a narrower stream."""
    if kind == "ragged":
        return Plan({"layers.0.channels": tuple(range(40))})
    if kind == "related":
        return Plan({f"layers.{layer}.heads": (0, 1, 2) for layer in range(2)})
    return Plan.uniform(describe(model, ["hidden"] if kind == "hidden" else ["channels"]), 0.5)


def plainly_loaded(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)


class TestTied:
    @pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2"])
    @pytest.mark.parametrize("divided", [False, True])
    def test_a_stored_head_that_differs_is_loaded_and_the_config_mended(
        self, tmp_path: Path, family: str, divided: bool, caplog: pytest.LogCaptureFixture
    ) -> None:
        logits = wrongly_tied(tmp_path, family)
        if divided:
            weights = {name: tensor.clone() for name, tensor in load_file(tmp_path / "model.safetensors").items()}
            files = {name: f"model-0000{1 + index % 2}-of-00002.safetensors" for index, name in enumerate(weights)}
            for file in set(files.values()):
                part = {name: weights[name] for name in weights if files[name] == file}
                save_file(part, tmp_path / file, metadata={"format": "pt"})
            (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": files}))
            (tmp_path / "model.safetensors").unlink()
        with caplog.at_level(logging.WARNING, "loraprune"):
            source = ModelSource.of(tmp_path)
            model = source.load(torch.float32, CPU)
        assert source.config.tie_word_embeddings is model.config.tie_word_embeddings is False
        assert torch.equal(logits_of(model, IDS), logits)
        assert [r.getMessage() for r in caplog.records if r.name == "loraprune"] == [
            f"warning: The head of {tmp_path} differs from its embedding, but its config ties them. Both are "
            "kept, and the config gets tie_word_embeddings=False."
        ]
        assert source.shapes.num_parameters() == model.num_parameters()

    def test_a_head_stored_twice_stays_tied(self, tmp_path: Path) -> None:
        tiny_checkpoint(tmp_path, tie_word_embeddings=True)
        weights = load_file(tmp_path / "model.safetensors")
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
        save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
        source = ModelSource.of(tmp_path)
        model = source.load(torch.float32, CPU)
        assert source.config.tie_word_embeddings is model.config.tie_word_embeddings is True
        assert model.get_input_embeddings().weight is model.get_output_embeddings().weight

    @pytest.mark.parametrize("kind", ["uniform", "ragged", "related", "hidden"])
    def test_every_kind_of_result_keeps_the_head(self, tmp_path: Path, kind: str) -> None:
        wrongly_tied(tmp_path / "base")
        model: Any = ModelSource.of(tmp_path / "base").load(torch.float32, CPU)
        expected_class = {"ragged": "PrunedLlamaForCausalLM", "related": "MistralForCausalLM"}
        cut_(model, plan_of(model, kind))
        logits = logits_of(model, IDS)
        save(model, tmp_path / "out")
        loaded = plainly_loaded(tmp_path / "out")
        assert type(loaded).__name__ == expected_class.get(kind, "LlamaForCausalLM")
        assert loaded.config.tie_word_embeddings is False
        torch.testing.assert_close(logits_of(loaded, IDS), logits, atol=1e-5, rtol=1e-4)

    @pytest.mark.parametrize("kind", ["uniform", "ragged", "related"])
    def test_a_head_trained_beside_the_adapter_is_kept(self, tmp_path: Path, kind: str) -> None:
        model = byte_model(tie_word_embeddings=True)
        adapted: Any = get_peft_model(model, LoraConfig(target_modules=["down_proj"], modules_to_save=["lm_head"]))
        with torch.no_grad():
            adapted.get_output_embeddings().weight.add_(torch.randn(adapted.get_output_embeddings().weight.shape))
        cut_(adapted, plan_of(adapted, kind))
        logits = logits_of(adapted, IDS)
        save(adapted, tmp_path / "out")
        loaded = plainly_loaded(tmp_path / "out")
        assert loaded.config.tie_word_embeddings is False
        torch.testing.assert_close(logits_of(loaded, IDS), logits, atol=1e-5, rtol=1e-4)

    def test_a_head_that_was_to_be_trained_and_was_not_stays_tied(self, tmp_path: Path) -> None:
        model = byte_model(tie_word_embeddings=True)
        adapted: Any = get_peft_model(model, LoraConfig(target_modules=["down_proj"], modules_to_save=["lm_head"]))
        save(adapted, tmp_path)
        assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")
        assert plainly_loaded(tmp_path).config.tie_word_embeddings is True

    def test_a_run_keeps_the_head(self, tmp_path: Path, data: Path) -> None:
        wrongly_tied(tmp_path / "base")
        options = RunOptions(output=tmp_path / "out", latency=False, eval_sequences=4)
        result = oneshot(tmp_path / "base", data, OneshotConfig(ratio=0.3, allocation="global"), options=options)
        loaded = plainly_loaded(tmp_path / "out")
        assert loaded.config.tie_word_embeddings is False
        torch.testing.assert_close(logits_of(loaded, IDS), logits_of(result.model, IDS), atol=1e-5, rtol=1e-4)

    def test_an_export_keeps_the_head(self, tmp_path: Path) -> None:
        wrongly_tied(tmp_path)
        checkpoint = read_checkpoint(tmp_path)
        assert checkpoint.config().tie_word_embeddings is False

    def test_an_encoder_decoder_is_left_as_it_is(self, tmp_path: Path) -> None:
        config = T5Config(vocab_size=40, d_model=16, d_kv=4, d_ff=24, num_layers=2, num_heads=4, num_decoder_layers=1)
        model = T5ForConditionalGeneration(config)
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight + 1)
        model.save_pretrained(tmp_path)
        source = ModelSource.of(tmp_path)
        assert source.load(torch.float32, CPU).config.tie_word_embeddings is source.config.tie_word_embeddings is True


class TestLayers:
    @pytest.mark.parametrize(("family", "key"), [("llama", "num_hidden_layers"), ("gpt2", "n_layer")])
    @pytest.mark.parametrize("said", [1, 3])
    def test_a_number_of_layers_that_the_weights_do_not_have_is_an_error(
        self, tmp_path: Path, family: str, key: str, said: int
    ) -> None:
        small_model(family).save_pretrained(tmp_path)
        change_config(tmp_path, **{key: said, "layer_types": None})
        with pytest.raises(CheckpointError, match=rf"have 2 layers \(.*\), but its config says {said}\. Correct"):
            ModelSource.of(tmp_path)

    def test_a_folder_without_weights_is_not_asked(self, tmp_path: Path) -> None:
        byte_model().config.save_pretrained(tmp_path)
        assert ModelSource.of(tmp_path).config.num_hidden_layers == 2

    def test_layers_that_a_family_leaves_out_on_purpose_do_not_count(self, tmp_path: Path) -> None:
        tiny_checkpoint(tmp_path)
        weights = load_file(tmp_path / "model.safetensors")
        weights["model.layers.2.mlp.down_proj.weight"] = torch.zeros(2, 2)
        save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(CheckpointError, match="have 3 layers"):
            ModelSource.of(tmp_path)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(LlamaForCausalLM, "_keys_to_ignore_on_load_unexpected", [r"model\.layers\.2.*"])
            ModelSource.of(tmp_path)

    @pytest.mark.parametrize("kind", ["ragged", "blocks"])
    def test_results_that_lost_blocks_are_read(self, tmp_path: Path, kind: str) -> None:
        model = byte_model()
        structure = describe(model, ["blocks"])
        cut_(model, Plan({structure.dimensions[0].name: (1,)}))
        if kind == "ragged":
            cut_(model, Plan({"layers.0.channels": tuple(range(50)), "layers.0.heads": (0, 1)}))
        save(model, tmp_path)
        assert ModelSource.of(tmp_path).config is not None
