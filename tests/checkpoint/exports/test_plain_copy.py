"""Checkpoints that were quantized elsewhere, and GGUF files, as ordinary checkpoints."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.checkpoint.exports.test_packed_numbers import AWQ_ORDER, packed
from tests.checkpoints import tiny_checkpoint
from torch import Tensor
from transformers import AutoModelForCausalLM

from loraprune.checkpoint.exports import plain_copy
from loraprune.checkpoint.exports.checkpoint import RuntimeFormatError
from loraprune.checkpoint.exports.plain_copy import write_plain_copy

Quantize = Callable[[Tensor], tuple[dict[str, Tensor], Tensor]]
"""A weight as the tensors of a format, and the weight that these stand for."""


def gptq(weight_OI: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    numbers, scales = torch.randint(0, 16, weight_OI.shape), weight_OI.abs().amax(1).half() / 8
    parts = {
        "qweight": packed(numbers.T, 4, 0),
        "qzeros": packed(torch.full((1, len(weight_OI)), 7), 4, 1),
        "scales": scales[None],
        "g_idx": torch.zeros(weight_OI.shape[1], dtype=torch.int32),
    }
    return parts, (numbers - 8) * scales.float()[:, None]


def awq(weight_OI: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    numbers, scales = torch.randint(0, 16, weight_OI.shape), weight_OI.abs().amax(1).half() / 8
    zeros = torch.full((1, len(weight_OI)), 8)
    parts = {"qweight": packed(numbers.T, 4, 1, AWQ_ORDER), "qzeros": packed(zeros, 4, 1, AWQ_ORDER)}
    return {**parts, "scales": scales[None]}, (numbers - 8) * scales.float()[:, None]


def fp8(weight_OI: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    scales = torch.rand(len(weight_OI) // 16, weight_OI.shape[1] // 16) + 0.5
    numbers = weight_OI.to(torch.float8_e4m3fn)
    spread = scales.repeat_interleave(16, 0).repeat_interleave(16, 1)
    return {"weight": numbers, "weight_scale_inv": scales}, numbers.float() * spread


def int8(weight_OI: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    scales = weight_OI.abs().amax(1, keepdim=True) / 127
    numbers = (weight_OI / scales).round().to(torch.int8)
    return {"weight": numbers, "weight_scale": scales}, numbers.float() * scales


FORMATS: dict[str, tuple[Quantize, Mapping[str, Any]]] = {
    "gptq": (gptq, {"bits": 4, "group_size": -1, "sym": True, "desc_act": False}),
    "awq": (awq, {"bits": 4, "group_size": -1, "version": "gemm", "zero_point": True}),
    "fp8": (fp8, {"weight_block_size": [16, 16], "activation_scheme": "dynamic"}),
    "compressed-tensors": (
        int8,
        {
            "format": "int-quantized",
            "config_groups": {"group_0": {"targets": ["Linear"], "weights": {"num_bits": 8, "strategy": "channel"}}},
        },
    ),
}


def quantized_folder(folder: Path, method: str) -> dict[str, Tensor]:
    """A checkpoint whose linear layers are quantized; returns the tensors that they stand for."""
    quantize, settings = FORMATS[method]
    tiny_checkpoint(folder)
    stored, plain, written = load_file(folder / "model.safetensors"), {}, {}
    for name, tensor in stored.items():
        if name.endswith("_proj.weight"):
            parts, plain[name] = quantize(tensor.float())
            written |= {name.removesuffix("weight") + part: value.contiguous() for part, value in parts.items()}
        else:
            written[name] = plain[name] = tensor
    save_file(written, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": method, **settings}
    (folder / "config.json").write_text(json.dumps(config))
    return plain


@pytest.mark.parametrize("method", FORMATS)
def test_a_copy_is_the_model_that_the_quantized_numbers_stand_for(method: str, tmp_path: Path) -> None:
    plain = quantized_folder(tmp_path / "model", method)
    result = write_plain_copy(tmp_path / "model", tmp_path / "copy")
    assert result.kind == method
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "copy")
    assert not hasattr(model.config, "quantization_config")
    assert result.size == (tmp_path / "copy" / "model.safetensors").stat().st_size
    found = load_file(tmp_path / "copy" / "model.safetensors")
    assert found.keys() == plain.keys()
    for name, tensor in found.items():
        assert torch.equal(tensor, plain[name].to(model.dtype)), name
    assert (tmp_path / "copy" / "tokenizer.json").is_file()


def test_large_copies_have_several_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = quantized_folder(tmp_path / "model", "gptq")
    monkeypatch.setattr(plain_copy, "SHARD", 20_000)
    write_plain_copy(tmp_path / "model", tmp_path / "copy")
    index = json.loads((tmp_path / "copy" / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"]) == set(plain)
    files = {path.name for path in (tmp_path / "copy").glob("*.safetensors")}
    assert files == set(index["weight_map"].values())
    assert len(files) > 2
    state = AutoModelForCausalLM.from_pretrained(tmp_path / "copy").state_dict()
    name = "model.layers.1.mlp.down_proj.weight"
    assert torch.equal(state[name], plain[name].to(state[name].dtype))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bits": 3}, r"16-bit copy of a checkpoint quantized with gptq \(3 bits\)"),
        ({"quant_method": "hqq"}, "quantized with hqq.*Name the original"),
        ({"quant_method": "awq", "version": "marlin"}, "quantized with awq"),
        ({"quant_method": "compressed-tensors", "format": "nvfp4-pack-quantized"}, "format nvfp4-pack-quantized"),
    ],
)
def test_what_is_not_known_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    quantized_folder(tmp_path / "model", "gptq")
    file = tmp_path / "model" / "config.json"
    config = json.loads(file.read_text())
    config["quantization_config"] |= changes
    file.write_text(json.dumps(config))
    with pytest.raises(RuntimeFormatError, match=message):
        write_plain_copy(tmp_path / "model", tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


def test_a_plain_checkpoint_needs_no_copy(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(RuntimeFormatError, match="is not quantized"):
        write_plain_copy(checkpoint, tmp_path / "copy")
