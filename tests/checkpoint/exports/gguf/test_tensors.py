from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.checkpoints import byte_model
from tests.models import tiny_config
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from loraprune.checkpoint.exports.checkpoint import BlockWidths, RuntimeFormatError, StoredTensor
from loraprune.checkpoint.exports.gguf.architecture import GGUF_LLAMA, GGUF_QWEN2, GgufArchitecture
from loraprune.checkpoint.exports.gguf.tensors import GgufTensor, gguf_tensors, interleave_halves

pytest.importorskip("gguf", reason="gguf is not installed")

WIDTHS = [BlockWidths(num_attention_heads=8, num_key_value_heads=4, intermediate_size=64)] * 2


def stored(**changes: Any) -> tuple[Any, dict[str, StoredTensor]]:
    model = byte_model(**changes)
    tensors = {
        name: StoredTensor(file=Path("model.safetensors"), shape=tuple(tensor.shape), dtype="F32")
        for name, tensor in model.state_dict().items()
    }
    return model.config, tensors


def convert(architecture: GgufArchitecture = GGUF_LLAMA, **changes: Any) -> list[GgufTensor]:
    config, tensors = stored(**changes)
    return gguf_tensors(architecture, config, WIDTHS, tensors)


def test_turning_neighbors_of_interleaved_rows_is_turning_halves_of_the_original_ones() -> None:
    heads, width, position = 3, 8, 5
    rows = torch.randn(heads * width, 10)
    inputs = torch.randn(10)
    angles = position / 10000 ** (torch.arange(0, width, 2) / width)
    cos, sin = angles.cos().repeat(2)[None, None], angles.sin().repeat(2)[None, None]
    halves, _ = apply_rotary_pos_emb(*[(rows @ inputs).reshape(1, heads, 1, width)] * 2, cos, sin)

    values = (interleave_halves(rows, heads) @ inputs).reshape(heads, width // 2, 2)
    pairs = torch.view_as_complex(values.contiguous()) * torch.polar(torch.ones_like(angles), angles)
    expected = torch.cat([pairs.real, pairs.imag], dim=-1)  # back to halves
    torch.testing.assert_close(expected, halves[0, :, 0])


def test_biases_move_with_their_rows() -> None:
    weight = torch.randn(12, 5)
    torch.testing.assert_close(interleave_halves(weight[:, 2], 3), interleave_halves(weight, 3)[:, 2])


def test_only_queries_and_keys_of_interleaving_architectures_move() -> None:
    def moved(tensors: list[GgufTensor]) -> set[tuple[str, int]]:
        leaves = {(tensor.name.split(".", 2)[-1], tensor.interleaved_heads) for tensor in tensors}
        return {leaf for leaf in leaves if leaf[1]}

    biased = {"attention_bias": True, "mlp_bias": True}
    expected = {("attn_q.weight", 8), ("attn_q.bias", 8), ("attn_k.weight", 4), ("attn_k.bias", 4)}
    assert moved(convert(**biased)) == expected
    assert moved(convert(GGUF_QWEN2, family="qwen2")) == set()


def test_every_stored_tensor_is_written_once() -> None:
    for changes in ({}, {"attention_bias": True, "mlp_bias": True}):
        _, tensors = stored(**changes)
        written = convert(**changes)
        assert sorted(tensor.source for tensor in written) == sorted(tensors)
        assert len({tensor.name for tensor in written}) == len(written)


def test_a_tied_head_and_saved_frequencies_are_left_out() -> None:
    config, tensors = stored(tie_word_embeddings=True)
    some = next(iter(tensors.values()))
    tensors = {**tensors, "lm_head.weight": some, "model.layers.0.self_attn.rotary_emb.inv_freq": some}
    names = {tensor.name for tensor in gguf_tensors(GGUF_LLAMA, config, WIDTHS, tensors)}
    assert "output.weight" not in names
    assert len(names) == len(tensors) - 2


def test_a_tensor_without_a_place_is_refused() -> None:
    config, tensors = stored(attention_bias=True)
    with pytest.raises(
        RuntimeFormatError, match=r"qwen2 has no place for model\.layers\.0\.self_attn\.o_proj\.bias and 1"
    ):
        gguf_tensors(GGUF_QWEN2, config, WIDTHS, tensors)


def test_a_missing_tensor_and_another_shape_are_refused() -> None:
    config, tensors = stored()
    missing = {name: tensor for name, tensor in tensors.items() if name != "model.norm.weight"}
    with pytest.raises(RuntimeFormatError, match=r"no tensor model\.norm\.weight"):
        gguf_tensors(GGUF_LLAMA, config, WIDTHS, missing)
    narrow = tiny_config("llama", vocab_size=config.vocab_size, intermediate_size=64)
    narrow.hidden_size = 16
    with pytest.raises(RuntimeFormatError, match=r"model\.embed_tokens\.weight has the shape \(261, 32\).*\(261, 16\)"):
        gguf_tensors(GGUF_LLAMA, narrow, WIDTHS, tensors)
