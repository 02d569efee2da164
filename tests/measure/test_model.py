from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.checkpoints import VOCABULARY, byte_model, load_measured, measurable, tiny_checkpoint, tiny_tokenizer
from tests.finished_run import QUICK
from tests.models import logits_of, token_ids
from tests.quantized_models import WIDTHS, quantized
from tests.tasks.models import tiny_bert, tiny_t5, tiny_vit
from transformers import AutoModelForCausalLM, BertConfig, BertForMaskedLM, MambaConfig, MambaForCausalLM

import loraprune
from loraprune import OneshotConfig, PruneResult, PruningConfig, RunOptions, oneshot
from loraprune.checkpoint.fingerprint import folder_fingerprint, hub_fingerprint
from loraprune.checkpoint.load import CheckpointError
from loraprune.measure.model import named_device
from loraprune.tasks.registry import task_of_source

IDS = token_ids(2, 12, vocabulary=VOCABULARY)


def logits(model: Any) -> torch.Tensor:
    return logits_of(model, IDS)


class TestCheckpoints:
    def test_a_plain_checkpoint_is_loaded_with_what_belongs_to_it(self, checkpoint: Path) -> None:
        source, found = measurable(checkpoint), load_measured(checkpoint)
        assert (source.name, task_of_source(source).name, source.context) == (str(checkpoint), "causal-lm", 64)
        assert (found.dtype, found.device) == (torch.float32, torch.device("cpu"))
        assert source.tokenizer.encode("ab") == tiny_tokenizer().encode("ab")
        assert not found.training
        plain = AutoModelForCausalLM.from_pretrained(checkpoint)
        assert torch.equal(logits(found), logits_of(plain, IDS))

    def test_it_computes_in_the_dtype_that_is_asked_for(self, checkpoint: Path) -> None:
        assert load_measured(checkpoint, dtype="bfloat16").dtype == torch.bfloat16
        with pytest.raises(ValueError, match=r"dtype is 'fp16'; choose one of float32, bfloat16, float16"):
            load_measured(checkpoint, dtype="fp16")

    def test_a_ragged_result_is_loaded_by_its_class(self, checkpoint: Path, tmp_path: Path, data: Path) -> None:
        config = PruningConfig(ratio=0.5, calibration_sequences=8, allocation="global", repair="none")
        options = RunOptions(output=tmp_path / "out", latency=False, report=False)
        result = loraprune.prune(checkpoint, data, config, training=QUICK, options=options)
        found = load_measured(tmp_path / "out")
        assert type(found).__name__ == "PrunedLlamaForCausalLM"
        assert torch.equal(logits(found), logits_of(result.model, IDS))

    @pytest.mark.parametrize("quantization", ["bnb-8bit", "bnb-4bit"])
    def test_a_checkpoint_that_is_quantized_stays_so(self, tmp_path: Path, quantization: str) -> None:
        plain = tiny_checkpoint(tmp_path / "plain", **WIDTHS)
        model = quantized(plain, quantization)
        model.save_pretrained(tmp_path / "quantized")
        tiny_tokenizer().save_pretrained(tmp_path / "quantized")
        found = load_measured(tmp_path / "quantized")
        assert type(found.get_submodule("model.layers.0.mlp.up_proj")).__name__ in ("Linear8bitLt", "Linear4bit")
        assert (logits(found) - logits_of(model, IDS)).abs().max() < 1e-4

    def test_a_family_without_a_description_can_be_measured(self, tmp_path: Path) -> None:
        values: dict[str, Any] = {"hidden_size": 16, "state_size": 4, "num_hidden_layers": 1, "vocab_size": VOCABULARY}
        MambaForCausalLM(MambaConfig(**values)).save_pretrained(tmp_path)
        tiny_tokenizer().save_pretrained(tmp_path)
        found = load_measured(tmp_path)
        source = measurable(tmp_path)
        assert (task_of_source(source).name, source.context) == ("causal-lm", None)
        assert logits(found).shape == (2, 12, VOCABULARY)

    @pytest.mark.parametrize(
        ("make", "task"),
        [(tiny_vit, "image-classification"), (tiny_bert, "text-classification"), (tiny_t5, "text-to-text")],
    )
    def test_models_of_other_kinds_are_known_by_their_class(self, tmp_path: Path, make: Any, task: str) -> None:
        make().save_pretrained(tmp_path)
        tiny_tokenizer().save_pretrained(tmp_path)
        if task == "text-classification":
            with pytest.raises(CheckpointError, match=r"does not fit the model: it has 261 tokens, and .* knows 17"):
                measurable(tmp_path)
        elif task == "text-to-text":
            with pytest.raises(CheckpointError, match=r"it has 261 tokens, and the model knows 258"):
                measurable(tmp_path)
        else:
            assert task_of_source(measurable(tmp_path)).name == task
            assert load_measured(tmp_path).main_input_name == "pixel_values"


class TestWrongCheckpoints:
    def test_a_folder_that_is_none_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(CheckpointError, match=r"is not a checkpoint: it has no config.json"):
            measurable(tmp_path)
        with pytest.raises(CheckpointError, match=r"is not a checkpoint: it has no config.json"):
            measurable("./nowhere")

    def test_a_model_for_something_else_is_refused(self, tmp_path: Path) -> None:
        values: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
        BertForMaskedLM(BertConfig(**values, vocab_size=300, intermediate_size=16)).save_pretrained(tmp_path)
        with pytest.raises(CheckpointError, match=r"cannot be measured: The model is a BertForMaskedLM"):
            measurable(tmp_path)

    def test_a_tokenizer_of_more_tokens_than_the_model_knows_is_refused(self, checkpoint: Path, tmp_path: Path) -> None:
        byte_model(vocab_size=200).save_pretrained(tmp_path)
        with pytest.raises(
            CheckpointError, match=r"does not fit the model: it has 261 tokens, and the model knows 200"
        ):
            measurable(tmp_path, tokenizer=str(checkpoint))

    def test_a_tokenizer_for_a_model_that_reads_no_text_is_refused(self, checkpoint: Path, tmp_path: Path) -> None:
        tiny_vit().save_pretrained(tmp_path)
        with pytest.raises(CheckpointError, match=r"reads no text. Leave --tokenizer out"):
            measurable(tmp_path, tokenizer=str(checkpoint))

    @pytest.mark.parametrize("name", ["cuda:99", "nonsense", "meta"])
    def test_a_device_that_is_not_there_is_refused(self, name: str) -> None:
        with pytest.raises(ValueError, match=name):
            named_device(name)

    def test_one_device_for_several_processes_is_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert named_device("cpu:0").type == "cpu"
        for name, value in (("RANK", "1"), ("LOCAL_RANK", "1"), ("WORLD_SIZE", "2")):
            monkeypatch.setenv(name, value)
        assert named_device("cpu").type == "cpu"
        with pytest.raises(ValueError, match=r"--device cpu:0 is one device, and each of the 2 processes"):
            named_device("cpu:0")


class TestFingerprint:
    def test_it_is_that_of_the_files_and_not_of_their_place(self, checkpoint: Path, tmp_path: Path) -> None:
        copy = shutil.copytree(checkpoint, tmp_path / "copy")
        (copy / "README.md").write_text("# A model")
        assert measurable(copy).fingerprint == measurable(checkpoint).fingerprint

    @pytest.mark.parametrize("file", ["config.json", "model.safetensors", "tokenizer.json"])
    def test_it_changes_with_what_the_model_computes(self, checkpoint: Path, tmp_path: Path, file: str) -> None:
        before = measurable(checkpoint).fingerprint
        copy = shutil.copytree(checkpoint, tmp_path / "copy")
        if file == "config.json":
            values = json.loads((copy / file).read_text())
            (copy / file).write_text(json.dumps(values | {"rms_norm_eps": 0.5}))
        elif file == "tokenizer.json":
            (copy / file).write_text((copy / file).read_text() + " ")
        else:
            byte_model(seed=1).save_pretrained(copy)
        assert measurable(copy).fingerprint != before

    def test_a_tokenizer_from_elsewhere_is_part_of_it(self, checkpoint: Path, tmp_path: Path) -> None:
        tiny_tokenizer(pad=True).save_pretrained(tmp_path)
        own = measurable(checkpoint).fingerprint
        assert measurable(checkpoint, tokenizer=str(tmp_path)).fingerprint != own

    def test_of_a_hub_model_it_is_the_commit_that_was_fetched(
        self, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        stored, commits = tmp_path / "models--owner--model", ("a" * 40, "b" * 40)
        for commit in commits:
            shutil.copytree(checkpoint, stored / "snapshots" / commit)
        (stored / "refs").mkdir()
        for commit in commits:
            (stored / "refs" / "main").write_text(commit)
            assert measurable("owner/model").fingerprint == f"hub:owner/model@{commit}"
        assert measurable("owner/model", revision=commits[0]).fingerprint == f"hub:owner/model@{commits[0]}"
        with_its_tokenizer = measurable(checkpoint, tokenizer="owner/model").fingerprint
        (stored / "refs" / "main").write_text(commits[0])
        assert measurable(checkpoint, tokenizer="owner/model").fingerprint != with_its_tokenizer

    def test_where_the_commit_is_unknown_no_two_are_equal(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
        assert hub_fingerprint("owner/model", None) != hub_fingerprint("owner/model", None)

    @pytest.mark.parametrize("file", ["sentencepiece.bpe.model", "source.spm", "dict.txt", "bpe.codes"])
    def test_files_of_all_kinds_of_tokenizers_are_part_of_it(self, tmp_path: Path, file: str) -> None:
        before = folder_fingerprint(tmp_path)
        (tmp_path / file).write_text("a b")
        assert folder_fingerprint(tmp_path) != before


def test_sparse_and_merged_results_of_every_recipe_are_loaded_as_they_are(
    finished: PruneResult, checkpoint: Path, tmp_path: Path
) -> None:
    assert finished.output is not None
    assert torch.equal(logits(load_measured(finished.output)), logits_of(finished.model, IDS))
    options = RunOptions(output=tmp_path / "sparse", report=False)
    sparse = oneshot(checkpoint, None, OneshotConfig(sparsity="2:4", criterion="magnitude"), options=options)
    assert torch.equal(logits(load_measured(tmp_path / "sparse")), logits_of(sparse.model, IDS))
