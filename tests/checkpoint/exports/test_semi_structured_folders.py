from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.checkpoint.exports.folders import change_config, ragged_folder
from tests.checkpoint.exports.two_four import linear_layers, two_four_folder
from tests.models import logits_of, token_ids
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from loraprune.checkpoint.exports import semi_structured
from loraprune.checkpoint.exports.checkpoint import RuntimeFormatError
from loraprune.checkpoint.exports.semi_structured import (
    DESCRIPTION,
    check_semi_structured,
    load_semi_structured,
    load_unpacked,
    write_packed,
    write_semi_structured,
)
from loraprune.checkpoint.exports.sparse_checkpoint import read_sparse_checkpoint

DENSE = "model.layers.0.self_attn.k_proj"


@pytest.fixture
def hardware(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hardware that takes every matrix as it is."""
    monkeypatch.setattr(semi_structured, "check_semi_structured", lambda *question, **named: None)
    monkeypatch.setattr(semi_structured, "_semi_structured", lambda weight: weight.detach())


def assert_same(found: PreTrainedModel, expected: PreTrainedModel) -> None:
    ours, theirs = found.state_dict(), expected.state_dict()
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert ours[name].dtype == tensor.dtype
        assert torch.equal(ours[name], tensor), name


@pytest.mark.parametrize("family", ["llama", "qwen2"])
@pytest.mark.parametrize("shard_size", ["5GB", "20KB"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_written_folder_holds_the_same_model(
    tmp_path: Path, family: str, shard_size: str, dtype: torch.dtype
) -> None:
    model = two_four_folder(tmp_path / "model", family, dense=[DENSE], dtype=dtype, shard_size=shard_size)
    result = write_packed(read_sparse_checkpoint(tmp_path / "model"), tmp_path / "out")
    assert (result.sparse, result.dense) == (len(linear_layers(model)) - 1, (DENSE,))
    assert_same(load_unpacked(tmp_path / "out"), model)


def test_a_tied_head_stays_tied(tmp_path: Path) -> None:
    model = two_four_folder(tmp_path / "model", tie_word_embeddings=True)
    write_packed(read_sparse_checkpoint(tmp_path / "model"), tmp_path / "out")
    loaded = load_unpacked(tmp_path / "out")
    assert_same(loaded, model)
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight


def test_the_tokenizer_and_the_generation_config_come_along(tmp_path: Path) -> None:
    two_four_folder(tmp_path / "model")
    path = tmp_path / "model" / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"max_new_tokens": 7}))
    write_packed(read_sparse_checkpoint(tmp_path / "model"), tmp_path / "out")
    assert load_unpacked(tmp_path / "out").generation_config.max_new_tokens == 7
    ours, theirs = (AutoTokenizer.from_pretrained(tmp_path / name) for name in ("out", "model"))
    assert ours("a text")["input_ids"] == theirs("a text")["input_ids"]


def test_the_sizes_are_those_of_the_files(tmp_path: Path) -> None:
    two_four_folder(tmp_path / "model", shard_size="20KB")
    result = write_packed(read_sparse_checkpoint(tmp_path / "model"), tmp_path / "out")
    sizes = [sum(file.stat().st_size for file in (tmp_path / name).glob("*.safetensors")) for name in ("out", "model")]
    assert [result.size, result.size_before] == sizes
    assert result.size < result.size_before


def test_transformers_does_not_load_the_folder_with_layers_left_out(tmp_path: Path) -> None:
    two_four_folder(tmp_path / "model")
    write_packed(read_sparse_checkpoint(tmp_path / "model"), tmp_path / "out")
    with pytest.raises(OSError, match=r"model\.safetensors"):
        AutoModelForCausalLM.from_pretrained(tmp_path / "out")


def test_a_machine_without_the_hardware_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    two_four_folder(tmp_path / "model")
    with pytest.raises(RuntimeFormatError, match="need a CUDA device"):
        write_semi_structured(tmp_path / "model", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_weights_in_32_bits_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    two_four_folder(tmp_path / "model", dtype=torch.float32)
    asked = []

    def check(device: str = "cuda", dtype: torch.dtype = torch.bfloat16) -> None:
        asked.append(dtype)
        if dtype == torch.float32:
            raise RuntimeFormatError("32 bits")

    monkeypatch.setattr(semi_structured, "check_semi_structured", check)
    with pytest.raises(RuntimeFormatError, match="32 bits"):
        write_semi_structured(tmp_path / "model", tmp_path / "out")
    assert asked == [torch.bfloat16, torch.float32]
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("hardware")
def test_writing_and_loading_give_the_logits_of_the_checkpoint(tmp_path: Path) -> None:
    model = two_four_folder(tmp_path / "model")
    write_semi_structured(tmp_path / "model", tmp_path / "out")
    loaded = load_semi_structured(tmp_path / "out", "cpu")
    assert not loaded.training
    ids = token_ids()
    assert torch.equal(logits_of(loaded, ids), logits_of(model.eval(), ids))


@pytest.mark.usefixtures("hardware")
def test_widths_that_differ_from_layer_to_layer_are_kept(tmp_path: Path) -> None:
    ragged_folder(tmp_path / "model", kept=(((1, 3), range(40)), ((0, 1, 2), range(3, 51))))
    change_config(tmp_path / "model", dtype="bfloat16")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    for layer in linear_layers(plain).values():
        layer.weight.data[:, 1::2] = 0
    plain.save_pretrained(tmp_path / "sparse")
    write_semi_structured(tmp_path / "sparse", tmp_path / "out")
    assert_same(load_semi_structured(tmp_path / "out", "cpu"), plain)


def test_loading_needs_the_hardware(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    two_four_folder(tmp_path / "model")
    write_packed(read_sparse_checkpoint(tmp_path / "model"), tmp_path / "out")
    with pytest.raises(RuntimeFormatError, match="need a CUDA device"):
        load_semi_structured(tmp_path / "out")


def test_another_folder_is_refused(tmp_path: Path) -> None:
    two_four_folder(tmp_path / "model")
    with pytest.raises(RuntimeFormatError, match=f"has no {DESCRIPTION}. Name a folder that"):
        load_semi_structured(tmp_path / "model")


def test_a_folder_of_a_later_format_is_refused(tmp_path: Path) -> None:
    (tmp_path / DESCRIPTION).write_text(json.dumps({"format": 2, "files": []}))
    with pytest.raises(RuntimeFormatError, match="has the format 2, but this version of loraprune reads 1"):
        load_semi_structured(tmp_path)


def test_every_sparse_weight_is_stored_packed_only(tmp_path: Path) -> None:
    model = two_four_folder(tmp_path / "model")
    write_packed(read_sparse_checkpoint(tmp_path / "model"), tmp_path / "out")
    (file,) = (tmp_path / "out").glob("*.safetensors")
    stored = load_file(file)
    for name, layer in linear_layers(model).items():
        assert f"{name}.weight" not in stored
        assert stored[f"{name}.weight.kept"].numel() == layer.weight.numel() / 2
        assert stored[f"{name}.weight.places"].nbytes == layer.weight.numel() / 8


def test_a_gpu_computes_what_the_checkpoint_does(tmp_path: Path) -> None:
    try:
        check_semi_structured()
    except RuntimeFormatError as error:
        pytest.skip(str(error))
    sizes = {"hidden_size": 128, "head_dim": 16, "intermediate_size": 256}
    model = two_four_folder(tmp_path / "model", dtype=torch.float16, **sizes).eval().cuda()
    write_semi_structured(tmp_path / "model", tmp_path / "out")
    loaded = load_semi_structured(tmp_path / "out")
    layers = linear_layers(loaded).values()
    assert any(isinstance(layer.weight.data, torch.sparse.SparseSemiStructuredTensor) for layer in layers)
    ids = token_ids().cuda()
    expected = logits_of(model, ids)
    assert (logits_of(loaded, ids) - expected).abs().max() <= 2e-2 * expected.abs().max()
