"""Files read back with the gguf package, without llama.cpp."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.checkpoint.exports.folders import RAGGED, UNUSED_ROWS, change_config, ragged_folder, uniform_folder
from tests.checkpoint.exports.tokenizers import byte_level, sentencepiece

from loraprune import NonFiniteWeightsError
from loraprune.checkpoint.exports.checkpoint import RuntimeFormatError
from loraprune.checkpoint.exports.gguf import file as gguf_file
from loraprune.checkpoint.exports.gguf.file import write_gguf

gguf = pytest.importorskip("gguf", reason="gguf is not installed")

BIASES = {"attention_bias": True, "mlp_bias": True}


def read(file: Path) -> tuple[dict[str, Any], dict[str, tuple[str, np.ndarray]]]:
    """Metadata and tensors (type, numbers) of a file."""
    reader = gguf.GGUFReader(file)
    values = {name: field.contents() for name, field in reader.fields.items()}
    tensors = {
        tensor.name: (tensor.tensor_type.name, gguf.dequantize(tensor.data, tensor.tensor_type))
        for tensor in reader.tensors
    }
    return values, tensors


def halves(rows: np.ndarray, head_dim: int = 4) -> np.ndarray:
    """Even features of each head first, then the odd ones: where transformers has the two halves."""
    heads = [rows[start : start + head_dim] for start in range(0, len(rows), head_dim)]
    return np.concatenate([part for head in heads for part in (head[0::2], head[1::2])])


PLACES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
}
OUTSIDE = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}


def place_of(name: str) -> str:
    if name in OUTSIDE:
        return OUTSIDE[name]
    _, _, layer, module, leaf = (*name.split(".", 3)[:3], *name.split(".", 3)[3].rsplit(".", 1))
    return f"blk.{layer}.{PLACES[module]}.{leaf}"


@pytest.mark.parametrize(
    ("save", "family", "changes", "moved"),
    [
        (uniform_folder, "llama", BIASES, True),
        (uniform_folder, "mistral", {}, True),
        (uniform_folder, "qwen2", {}, False),
        (uniform_folder, "qwen2", {"num_attention_heads": 4}, True),
        (uniform_folder, "qwen3", {}, False),
        (ragged_folder, "llama", BIASES, True),
        (ragged_folder, "mistral", {}, True),
        (ragged_folder, "qwen2", {}, True),
    ],
)
def test_every_number_is_found_again(
    tmp_path: Path, save: Callable[..., Any], family: str, changes: dict[str, Any], moved: bool
) -> None:
    save(tmp_path / "model", family, **changes)
    write_gguf(tmp_path / "model", tmp_path / "m.gguf", outtype="f32")
    _, tensors = read(tmp_path / "m.gguf")
    stored = load_file(tmp_path / "model" / "model.safetensors")
    assert set(tensors) == {place_of(name) for name in stored}
    for name, tensor in stored.items():
        kind, found = tensors[place_of(name)]
        assert kind == "F32"
        turned = moved and ("q_proj" in name or "k_proj" in name)
        assert np.array_equal(halves(found) if turned else found, tensor.numpy()), name


def test_a_ragged_file_lists_the_widths_of_its_blocks(tmp_path: Path) -> None:
    ragged_folder(tmp_path / "model")
    result = write_gguf(tmp_path / "model", tmp_path / "m.gguf")
    values, _ = read(result.file)
    assert values["general.architecture"] == result.architecture == "deci"
    assert values["deci.block_count"] == len(RAGGED)
    assert values["deci.attention.head_count"] == [2 * len(heads) for heads, _ in RAGGED]
    assert values["deci.attention.head_count_kv"] == [len(heads) for heads, _ in RAGGED]
    assert values["deci.feed_forward_length"] == [len(channels) for _, channels in RAGGED]
    assert values["deci.attention.key_length"] == values["deci.rope.dimension_count"] == 4


def test_blocks_that_agree_make_a_uniform_file(tmp_path: Path) -> None:
    ragged_folder(tmp_path / "model", kept=[((1, 3), range(40)), ((0, 1), range(9, 49))])
    result = write_gguf(tmp_path / "model", tmp_path / "m.gguf")
    values, _ = read(result.file)
    assert result.architecture == "llama"
    assert (values["llama.attention.head_count"], values["llama.attention.head_count_kv"]) == (4, 2)
    assert values["llama.feed_forward_length"] == 40


def test_the_numbers_of_the_config_are_in_the_file(tmp_path: Path) -> None:
    rope = {"rope_type": "default", "rope_theta": 7000.0}
    model = uniform_folder(tmp_path / "tiny", "mistral", rms_norm_eps=1e-3, rope_parameters=rope, sliding_window=48)
    result = write_gguf(tmp_path / "tiny", tmp_path / "m.gguf", outtype="f16")
    values, _ = read(result.file)
    assert values["general.name"] == "tiny"
    assert values["general.file_type"] == gguf.LlamaFileType.MOSTLY_F16
    assert values["llama.embedding_length"] == 32
    assert values["llama.vocab_size"] == model.config.vocab_size
    assert values["llama.context_length"] == 48
    assert values["llama.rope.freq_base"] == 7000.0
    assert values["llama.attention.layer_norm_rms_epsilon"] == pytest.approx(1e-3)
    assert result.notes == ("the context is 48 tokens, up to which the sliding window covers the whole text",)
    assert result.size == result.file.stat().st_size


def test_the_tokenizer_is_in_the_file(tmp_path: Path) -> None:
    tokenizer = byte_level(frame=True)
    tokenizer.chat_template = "{{ messages }}"
    uniform_folder(tmp_path / "model", tokenizer=tokenizer)
    result = write_gguf(tmp_path / "model", tmp_path / "m.gguf")
    values, tensors = read(result.file)
    assert result.tokenizer == (values["tokenizer.ggml.model"], values["tokenizer.ggml.pre"]) == ("gpt2", "gpt-2")
    tokens = values["tokenizer.ggml.tokens"]
    assert tokens[: len(tokenizer)] == tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    assert len(tokens) == len(values["tokenizer.ggml.token_type"]) == len(tokenizer) + UNUSED_ROWS
    assert len(tokens) == len(tensors["token_embd.weight"][1])
    assert values["tokenizer.ggml.merges"][0].count(" ") == 1
    assert (values["tokenizer.ggml.bos_token_id"], values["tokenizer.ggml.eos_token_id"]) == (0, 1)
    assert values["tokenizer.ggml.add_bos_token"] is values["tokenizer.ggml.add_eos_token"] is True
    assert values["tokenizer.chat_template"] == "{{ messages }}"
    uniform_folder(tmp_path / "other", tokenizer=sentencepiece())
    values, _ = read(write_gguf(tmp_path / "other", tmp_path / "o.gguf").file)
    assert values["tokenizer.ggml.model"] == "llama"
    assert values["tokenizer.ggml.add_space_prefix"] is True
    assert len(values["tokenizer.ggml.scores"]) == len(values["tokenizer.ggml.tokens"])
    assert "tokenizer.ggml.merges" not in values


def test_sixteen_bits_hold_the_matrices_and_vectors_stay_in_32(tmp_path: Path) -> None:
    model = uniform_folder(tmp_path / "model", dtype=torch.bfloat16)
    result = write_gguf(tmp_path / "model", tmp_path / "m.gguf")
    _, tensors = read(result.file)
    assert {kind for kind, numbers in tensors.values() if numbers.ndim == 2} == {"F16"}
    assert {kind for kind, numbers in tensors.values() if numbers.ndim == 1} == {"F32"}
    down = model.model.layers[1].mlp.down_proj.weight.detach().float()
    assert np.array_equal(tensors["blk.1.ffn_down.weight"][1], down.half().float().numpy())


def test_eight_bits_are_off_by_half_a_step_at_most(tmp_path: Path) -> None:
    model = uniform_folder(tmp_path / "model")
    result = write_gguf(tmp_path / "model", tmp_path / "m.gguf", outtype="q8_0")
    _, tensors = read(result.file)
    assert result.notes == ()
    for name, parameter in model.named_parameters():
        kind, found = tensors[place_of(name)]
        assert kind == ("Q8_0" if parameter.dim() == 2 else "F32")
        expected = parameter.detach().numpy()
        if "q_proj" in name or "k_proj" in name:
            found = halves(found)
        # One scale, itself in 16 bits, for 32 numbers: 127 steps up to the largest of them.
        blocks = np.abs(expected).reshape(-1, 32 if parameter.dim() == 2 else 1)
        step = np.repeat(blocks.max(1) / 127, blocks.shape[1]).reshape(expected.shape)
        assert np.all(np.abs(found - expected) <= step * (0.5 + 127 * 2**-11)), name


def test_rows_that_are_no_whole_blocks_of_eight_bits_stay_in_sixteen(tmp_path: Path) -> None:
    ragged_folder(tmp_path / "model")
    result = write_gguf(tmp_path / "model", tmp_path / "m.gguf", outtype="q8_0")
    _, tensors = read(result.file)
    wider = {name for name, (kind, _) in tensors.items() if kind == "F16"}
    assert wider == {f"blk.{layer}.{name}.weight" for layer in range(2) for name in ("attn_output", "ffn_down")}
    assert result.notes == ("4 matrices are in f16, because q8_0 needs rows of a multiple of 32",)


@pytest.mark.parametrize("outtype", ["f16", "f32", "q8_0"])
def test_a_number_that_is_not_finite_is_refused(tmp_path: Path, outtype: str) -> None:
    uniform_folder(tmp_path / "model")
    weights = load_file(tmp_path / "model" / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][3, 3] = float("nan")
    save_file(weights, tmp_path / "model" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(NonFiniteWeightsError, match=r"layers\.1\.mlp\.up_proj\.weight holds 1 NaN and 0 Inf"):
        write_gguf(tmp_path / "model", tmp_path / "m.gguf", outtype=outtype)
    assert not (tmp_path / "m.gguf").exists()


def test_a_number_too_large_for_sixteen_bits_is_refused(tmp_path: Path) -> None:
    uniform_folder(tmp_path / "model")
    weights = load_file(tmp_path / "model" / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][3, 3] = -1e5
    save_file(weights, tmp_path / "model" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        RuntimeFormatError, match=r"up_proj\.weight holds 1e\+05, which is too large for 16 bits.*--outtype f32"
    ):
        write_gguf(tmp_path / "model", tmp_path / "m.gguf")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    write_gguf(tmp_path / "model", tmp_path / "m.gguf", outtype="f32")


def test_one_tensor_is_in_memory_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uniform_folder(tmp_path / "model")
    events: list[str] = []
    stored = gguf_file._stored

    def record(values: np.ndarray, source: str, kind: Any) -> np.ndarray:
        events.append(source)
        file = next(tmp_path.glob(".m.gguf.*/m.gguf"))
        # What came before is on its way to the disk: the file grows while tensors are read.
        sizes.append(file.stat().st_size)
        return stored(values, source, kind)

    sizes: list[int] = []
    monkeypatch.setattr(gguf_file, "_stored", record)
    write_gguf(tmp_path / "model", tmp_path / "m.gguf", outtype="f32")
    assert len(events) == len(set(events)) == len(load_file(tmp_path / "model" / "model.safetensors"))
    assert sizes == sorted(sizes)
    assert sizes[0] < sizes[-1] <= (tmp_path / "m.gguf").stat().st_size


def test_nothing_is_written_for_a_refused_checkpoint(tmp_path: Path) -> None:
    ragged_folder(tmp_path / "model", "qwen3")
    with pytest.raises(RuntimeFormatError, match="transformers loads the folder"):
        write_gguf(tmp_path / "model", tmp_path / "out" / "m.gguf")
    change_config(tmp_path / "model", model_type="gemma2", pruned=None)
    with pytest.raises(RuntimeFormatError, match="cannot write a gemma2 model"):
        write_gguf(tmp_path / "model", tmp_path / "out" / "m.gguf")
    with pytest.raises(RuntimeFormatError, match=r"no outtype 'q4_0'; choose one of f16, f32, q8_0"):
        write_gguf(tmp_path / "model", tmp_path / "out" / "m.gguf", outtype="q4_0")
    assert not (tmp_path / "out").exists()


def test_the_package_is_asked_for_where_it_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uniform_folder(tmp_path / "model")
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(RuntimeFormatError, match=r'Writing GGUF needs .* gguf: pip install "loraprune\[gguf\]"'):
        write_gguf(tmp_path / "model", tmp_path / "m.gguf")


@pytest.mark.parametrize("name", ["stories260K", "babyllama105"])
def test_a_real_checkpoint_is_written_with_its_tokenizer(shared_models: Path, tmp_path: Path, name: str) -> None:
    result = write_gguf(shared_models / name, tmp_path / "m.gguf", outtype="q8_0")
    values, tensors = read(result.file)
    assert (result.architecture, result.tokenizer) == ("llama", ("llama", "default"))
    assert values["tokenizer.ggml.tokens"][:3] == ["<unk>", "<s>", "</s>"]
    stored = load_file(shared_models / name / "model.safetensors")
    expected = stored["model.embed_tokens.weight"].numpy()
    assert np.abs(tensors["token_embd.weight"][1] - expected).max() <= np.abs(expected).max() / 127
