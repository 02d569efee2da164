"""A model before its weights: what is known of it, from where, and that each way of naming one loads the same."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.checkpoint.exports.two_four import two_four_folder
from tests.checkpoints import byte_model, tiny_checkpoint, tiny_tokenizer
from transformers import ElectraConfig, ElectraForMaskedLM

from loraprune import (
    CheckpointError,
    EvaluationConfig,
    OneshotConfig,
    UnsupportedArchitectureError,
    evaluate,
    oneshot,
)
from loraprune.checkpoint.exports.semi_structured import write_packed
from loraprune.checkpoint.exports.sparse_checkpoint import read_sparse_checkpoint
from loraprune.checkpoint.source import ModelSource
from loraprune.checkpoint.weight_files import dtype_in_files, weight_files

CPU = torch.device("cpu")


def change_config(folder: Path, **values: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


class TestDtype:
    @pytest.mark.parametrize("said", [None, "float32", "float16"])
    def test_the_weights_say_it_whatever_the_config_says(self, tmp_path: Path, said: str | None) -> None:
        byte_model().to(torch.bfloat16).save_pretrained(tmp_path)
        change_config(tmp_path, dtype=said)
        assert ModelSource.of(tmp_path).stored_dtype is torch.bfloat16

    def test_of_several_the_one_that_most_numbers_have_counts(self, tmp_path: Path) -> None:
        byte_model().to(torch.bfloat16).save_pretrained(tmp_path)
        weights = load_file(tmp_path / "model.safetensors")
        norms = {name: weight.float() for name, weight in weights.items() if weight.dim() == 1}
        save_file({**weights, **norms}, tmp_path / "model.safetensors", metadata={"format": "pt"})
        assert len(norms) > 0
        assert ModelSource.of(tmp_path).stored_dtype is torch.bfloat16

    def test_all_files_of_a_divided_checkpoint_are_looked_at(self, tmp_path: Path) -> None:
        byte_model().to(torch.float16).save_pretrained(tmp_path, max_shard_size="20KB")
        assert len(weight_files(tmp_path)) > 1
        assert dtype_in_files(tmp_path) is torch.float16

    @pytest.mark.parametrize("broken", [True, False])
    def test_without_readable_weights_the_config_says_it(self, tmp_path: Path, broken: bool) -> None:
        tiny_checkpoint(tmp_path)
        (tmp_path / "model.safetensors").unlink()
        if broken:
            (tmp_path / "model.safetensors").write_bytes(b"\x00" * 100)
        change_config(tmp_path, dtype="bfloat16")
        assert ModelSource.of(tmp_path).stored_dtype is torch.bfloat16

    def test_of_a_quantized_checkpoint_the_config_says_it(self, tmp_path: Path) -> None:
        tiny_checkpoint(tmp_path)
        change_config(tmp_path, dtype="bfloat16", quantization_config={"quant_method": "gptq", "bits": 4})
        assert ModelSource.of(tmp_path, quantized=True).stored_dtype is torch.bfloat16

    def test_of_a_hub_model_the_files_that_were_fetched_say_it(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        commit = tmp_path / "models--owner--model" / "snapshots" / ("a" * 40)
        byte_model().to(torch.float16).save_pretrained(commit)
        change_config(commit, dtype="float32")
        (commit.parents[1] / "refs").mkdir()
        (commit.parents[1] / "refs" / "main").write_text("a" * 40)
        assert ModelSource.of("owner/model").stored_dtype is torch.float16

    def test_a_folder_that_happens_to_have_the_name_of_a_config_says_nothing(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        byte_model().to(torch.float16).save_pretrained(tmp_path / "model")
        monkeypatch.chdir(tmp_path)
        config = byte_model().config
        config.dtype = torch.float32
        assert ModelSource(name="model", config=config).stored_dtype is torch.float32


class TestModelsInMemory:
    def test_one_is_its_own_shapes_and_is_given_back_as_it_is(self) -> None:
        model = byte_model().to(torch.bfloat16)
        source = ModelSource.of(model)
        assert source.shapes is source.load(torch.float32, CPU) is model
        assert (source.name, source.checkpoint, source.device) == ("model", None, CPU)
        assert source.stored_dtype is source.working_dtype(CPU) is torch.bfloat16

    def test_its_config_is_a_copy_that_names_its_class(self) -> None:
        model = byte_model()
        model.config.architectures = None
        source = ModelSource.of(model)
        assert source.config.architectures == ["LlamaForCausalLM"]
        assert model.config.architectures is None
        assert source.auto_class == "AutoModelForCausalLM"

    def test_without_a_checkpoint_there_is_no_tokenizer_unless_one_is_given(self) -> None:
        with pytest.raises(ValueError, match=r"names no checkpoint to load a tokenizer from. Pass tokenizer="):
            _ = ModelSource.of(byte_model()).tokenizer
        tokenizer = tiny_tokenizer()
        assert ModelSource.of(byte_model(), tokenizer=tokenizer).tokenizer is tokenizer

    def test_one_that_was_loaded_takes_the_tokenizer_of_its_checkpoint(self, checkpoint: Path) -> None:
        model = ModelSource.of(checkpoint).load(torch.float32, CPU)
        source = ModelSource.of(model)
        assert source.name == source.checkpoint == str(checkpoint)
        assert source.tokenizer.get_vocab() == tiny_tokenizer().get_vocab()


class TestNames:
    def test_everything_but_the_weights_is_known_without_them(self, checkpoint: Path, tmp_path: Path) -> None:
        for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
            shutil.copyfile(checkpoint / name, tmp_path / name)
        source = ModelSource.of(tmp_path)
        assert source.shapes.num_parameters() == ModelSource.of(checkpoint).load(torch.float32, CPU).num_parameters()
        assert {parameter.device.type for parameter in source.shapes.parameters()} == {"meta"}
        assert (source.context, source.vocabulary) == (64, len(source.tokenizer))
        with pytest.raises(CheckpointError, match="holds no weights"):
            source.load(torch.float32, CPU)

    def test_building_the_shapes_leaves_the_config_alone(self, checkpoint: Path) -> None:
        source = ModelSource.of(checkpoint)
        before = source.config.to_dict()
        source.shapes.config.num_hidden_layers = 7
        assert source.config.to_dict() == before

    def test_a_family_without_a_description_is_refused_unless_any_will_do(self, tmp_path: Path) -> None:
        sizes = {"embedding_size": 32, "hidden_size": 32, "intermediate_size": 24, "num_attention_heads": 4}
        ElectraForMaskedLM(ElectraConfig(vocab_size=40, num_hidden_layers=1, **sizes)).save_pretrained(tmp_path)
        with pytest.raises(UnsupportedArchitectureError, match="'electra'"):
            ModelSource.of(tmp_path)
        assert ModelSource.of(tmp_path, described=False).auto_class == "AutoModelForMaskedLM"

    def test_packed_2_4_weights_are_loaded_as_ordinary_ones_on_a_cpu(self, tmp_path: Path) -> None:
        model = two_four_folder(tmp_path / "model", dtype=torch.bfloat16)
        write_packed(read_sparse_checkpoint(tmp_path / "model"), tmp_path / "packed")
        source = ModelSource.of_any(tmp_path / "packed")
        loaded = source.load(torch.float32, CPU)
        assert source.stored_dtype is torch.bfloat16
        assert loaded.dtype is torch.float32
        for name, weight in model.state_dict().items():
            assert torch.equal(loaded.state_dict()[name], weight.float())

    def test_packed_2_4_weights_are_measured_and_not_tuned(self, tmp_path: Path) -> None:
        two_four_folder(tmp_path / "model")
        tiny_tokenizer().save_pretrained(tmp_path / "model")
        write_packed(read_sparse_checkpoint(tmp_path / "model"), tmp_path / "packed")
        (tmp_path / "text.txt").write_text("Two of four weights are zero. " * 9)
        config = EvaluationConfig(ppl=(str(tmp_path / "text.txt"),), max_length=32)
        plain, packed = evaluate([tmp_path / "model", tmp_path / "packed"], config).entries
        assert packed.values == plain.values
        with pytest.raises(CheckpointError, match=r"packed holds packed 2:4 weights.*that it was exported from"):
            oneshot(tmp_path / "packed", config=OneshotConfig(criterion="magnitude", sparsity="2:4"))
