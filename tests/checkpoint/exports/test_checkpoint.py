from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.checkpoint.exports.folders import change_config, ragged_folder
from tests.checkpoints import byte_model

from loraprune.checkpoint.exports.checkpoint import RuntimeFormatError, read_checkpoint


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    byte_model().save_pretrained(tmp_path)
    return tmp_path


def test_shards_are_read_as_one(tmp_path: Path) -> None:
    model = byte_model()
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert (tmp_path / "model.safetensors.index.json").is_file()
    checkpoint = read_checkpoint(tmp_path)
    state = model.state_dict()
    assert set(checkpoint.tensors) == set(state)
    for name, tensor in state.items():
        assert checkpoint.tensors[name].shape == tensor.shape
        assert torch.equal(checkpoint.load(name), tensor)


def test_a_ragged_checkpoint_is_one_of_the_family_it_came_from(tmp_path: Path) -> None:
    ragged_folder(tmp_path, "mistral")
    checkpoint = read_checkpoint(tmp_path)
    assert checkpoint.model_type == "mistral"
    assert [vars(widths) for widths in checkpoint.widths()] == [
        {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 40},
        {"num_attention_heads": 6, "num_key_value_heads": 3, "intermediate_size": 50},
    ]
    stored = load_file(tmp_path / "model.safetensors")
    assert {name: tensor.shape for name, tensor in checkpoint.tensors.items()} == {
        name: tuple(tensor.shape) for name, tensor in stored.items()
    }


def test_an_older_way_to_write_the_rotary_embedding_is_understood(folder: Path) -> None:
    scaling = {"type": "linear", "factor": 2.0}
    change_config(folder, rope_parameters=None, rope_theta=7000.0, rope_scaling=scaling)
    parameters = read_checkpoint(folder).config().rope_parameters
    assert (parameters["rope_theta"], parameters["rope_type"], parameters["factor"]) == (7000.0, "linear", 2.0)


def test_what_is_no_checkpoint_is_refused(tmp_path: Path, folder: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(RuntimeFormatError, match=r"empty is not a checkpoint: it has no config\.json"):
        read_checkpoint(empty)
    (empty / "adapter_config.json").write_text("{}")
    with pytest.raises(RuntimeFormatError, match=r"only an adapter\. Export the folder of the run.*merge_and_unload"):
        read_checkpoint(empty)
    (empty / "config.json").write_text("{")
    with pytest.raises(RuntimeFormatError, match=r"config\.json cannot be read as JSON"):
        read_checkpoint(empty)
    (empty / "config.json").write_text("[]")
    with pytest.raises(RuntimeFormatError, match="names no model_type"):
        read_checkpoint(empty)
    change_config(folder, quantization_config={"load_in_8bit": True})
    with pytest.raises(RuntimeFormatError, match="quantized weights"):
        read_checkpoint(folder)


def test_weights_that_are_missing_or_broken_are_refused(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(RuntimeFormatError, match=r"model\.safetensors cannot be read"):
        read_checkpoint(folder)
    weights.unlink()
    (folder / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(RuntimeFormatError, match=r"no model\.safetensors. Only safetensors weights can be exported"):
        read_checkpoint(folder)
    index = {"weight_map": {"lm_head.weight": "model-00001-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(RuntimeFormatError, match="no model-00001-of-00002"):
        read_checkpoint(folder)
