"""What llama.cpp itself computes from our files. Runs where llama-cpp-python is installed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.checkpoint.exports.folders import model_for, ragged_folder, uniform_folder
from tests.checkpoint.exports.tokenizers import CUTS, TEXTS, byte_level, named, sentencepiece
from tests.models import logits_of, token_ids, with_lora
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from loraprune.checkpoint.exports.checkpoint import RuntimeFormatError
from loraprune.checkpoint.exports.gguf.file import write_gguf
from loraprune.checkpoint.save import finish, save_checkpoint
from loraprune.data.demo import PROMPT, demo_model
from loraprune.structure.describe import describe
from loraprune.structure.plan import Plan
from loraprune.surgery.slicing import slice_

llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
gguf = pytest.importorskip("gguf", reason="gguf is not installed")

pytestmark = pytest.mark.slow

LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8,
}
BIASES = {"attention_bias": True, "mlp_bias": True}
FEWER_HEADS = {"num_attention_heads": 6, "num_key_value_heads": 3}
UNIFORM = [
    pytest.param("llama", "llama", {}, id="llama"),
    pytest.param("llama", "llama", {"num_attention_heads": 4, "num_key_value_heads": 2}, id="llama-half"),
    pytest.param("llama", "llama", {"tie_word_embeddings": True, **BIASES}, id="llama-tied-biases"),
    pytest.param("llama", "llama", {"rope_parameters": LLAMA3_ROPE}, id="llama-rope-llama3"),
    pytest.param(
        "llama",
        "llama",
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 500.0, "factor": 3.0}},
        id="llama-rope-linear",
    ),
    pytest.param("mistral", "llama", {"sliding_window": 32, **FEWER_HEADS}, id="mistral-six-heads"),
    pytest.param("qwen2", "qwen2", {}, id="qwen2"),
    pytest.param("qwen2", "llama", FEWER_HEADS, id="qwen2-six-heads"),
    pytest.param("qwen2", "llama", {"rope_parameters": LLAMA3_ROPE}, id="qwen2-rope-llama3"),
    pytest.param("qwen3", "qwen3", FEWER_HEADS, id="qwen3-six-heads"),
]
RAGGED = [
    pytest.param("llama", {}, id="llama"),
    pytest.param("llama", {"rope_parameters": LLAMA3_ROPE, "tie_word_embeddings": True, **BIASES}, id="llama-all"),
    pytest.param("mistral", {"sliding_window": None}, id="mistral"),
    pytest.param("qwen2", {}, id="qwen2"),
]
IDS = token_ids(1, 24, vocabulary=400)


@pytest.fixture
def load() -> Iterator[Callable[..., Any]]:
    """Opens a file in llama.cpp, with keys and values kept in 32 bits."""
    opened = []

    def _load(file: Path) -> Any:
        opened.append(
            llama_cpp.Llama(
                str(file),
                n_ctx=32,
                n_threads=1,
                logits_all=True,
                verbose=False,
                type_k=llama_cpp.GGML_TYPE_F32,
                type_v=llama_cpp.GGML_TYPE_F32,
            )
        )
        return opened[-1]

    yield _load
    for model in opened:
        model.close()


def logits_in(llama: Any) -> torch.Tensor:
    llama.reset()
    llama.eval(IDS[0].tolist())
    return torch.tensor(np.array(llama.eval_logits), dtype=torch.float32)


def relative_difference(llama: Any, model: torch.nn.Module) -> float:
    """Largest difference of logits, as a share of the largest logit."""
    expected = logits_of(model, IDS)[0]
    found = logits_in(llama)
    assert found.shape == expected.shape
    return float((found - expected).abs().max() / expected.abs().max())


@torch.no_grad()
def rounded_(model: PreTrainedModel, file: Path) -> PreTrainedModel:
    """Round a model's matrices as the file's type does; what is left is how llama.cpp rounds between the layers."""
    types = {tensor.name: tensor.tensor_type for tensor in gguf.GGUFReader(file).tensors}
    consumers = {"o_proj": "attn_output", "down_proj": "ffn_down"}
    for name, parameter in model.named_parameters():
        if parameter.dim() == 2:
            *_, layer, _, leaf, _ = ("", "", *name.split("."))
            kind = types[f"blk.{layer}.{consumers[leaf]}.weight" if leaf in consumers else "token_embd.weight"]
            values = gguf.dequantize(gguf.quantize(parameter.numpy(), kind), kind)
            parameter.copy_(torch.from_numpy(values.reshape(parameter.shape)))
    return model


@pytest.mark.parametrize(("family", "architecture", "changes"), UNIFORM)
def test_logits_of_a_uniform_model_are_those_of_transformers(
    load: Callable[..., Any], tmp_path: Path, family: str, architecture: str, changes: dict[str, Any]
) -> None:
    model = uniform_folder(tmp_path / "model", family, **changes)
    result = write_gguf(tmp_path / "model", tmp_path / "model.gguf", outtype="f32")
    assert result.architecture == architecture
    # 32 bits throughout: nothing but the order of the sums differs.
    assert relative_difference(load(result.file), model) < 1e-5


@pytest.mark.parametrize(("family", "changes"), RAGGED)
def test_logits_of_a_ragged_model_are_those_of_the_masked_one(
    load: Callable[..., Any], tmp_path: Path, family: str, changes: dict[str, Any]
) -> None:
    masked = ragged_folder(tmp_path / "model", family, **changes)
    result = write_gguf(tmp_path / "model", tmp_path / "model.gguf", outtype="f32")
    assert result.architecture == "deci"
    llama = load(result.file)
    assert relative_difference(llama, masked) < 1e-5
    whole = model_for(byte_level(), family, **changes)
    assert relative_difference(llama, whole) > 1e-2, "the cut is not felt, so the comparison says nothing"


def test_a_ragged_result_of_this_package_is_read_as_it_was_tuned(load: Callable[..., Any], tmp_path: Path) -> None:
    tokenizer = byte_level()
    model = model_for(tokenizer)
    structure = describe(model)
    full = Plan.full(structure)
    plan = Plan({**full.kept, "layers.0.heads": (1, 3), "layers.1.heads": (0, 1, 2), "layers.1.channels": (0, 5, 9)})
    adapted = with_lora(model)
    slice_(adapted, structure, full, plan)
    save_checkpoint(tmp_path / "out", finish(adapted, structure, plan), tokenizer, record={}, card="# A card\n")
    result = write_gguf(tmp_path / "out", tmp_path / "m.gguf", outtype="f32")
    assert result.architecture == "deci"
    assert relative_difference(load(result.file), adapted) < 1e-5


# f16: llama.cpp rounds the input of every product to 11 bits (a relative 5e-4); a dozen products deep that stays
# within 1e-2. q8_0: it rounds them to 8 bits (up to 4e-3 of the largest of 32), ten times as coarse.
@pytest.mark.parametrize(("outtype", "tolerance"), [("f16", 1e-2), ("q8_0", 1e-1)])
@pytest.mark.parametrize("ragged", [False, True], ids=["uniform", "ragged"])
def test_smaller_types_lose_what_their_rounding_explains(
    load: Callable[..., Any], tmp_path: Path, outtype: str, tolerance: float, ragged: bool
) -> None:
    model = (ragged_folder if ragged else uniform_folder)(tmp_path / "model")
    result = write_gguf(tmp_path / "model", tmp_path / "model.gguf", outtype=outtype)
    assert relative_difference(load(result.file), rounded_(model, result.file)) < tolerance


def ids_in(llama: Any, text: str, *, special: bool = False) -> list[int]:
    return llama.tokenize(text.encode(), add_bos=True, special=special)


def tokenizer_file(tmp_path: Path, tokenizer: PreTrainedTokenizerBase) -> Path:
    uniform_folder(tmp_path / "model", tokenizer=tokenizer)
    return write_gguf(tmp_path / "model", tmp_path / "model.gguf").file


TOKENIZERS = {
    **{name: lambda name=name: named(name) for name in CUTS},
    "framed": lambda: byte_level(frame=True),
    "sentencepiece": sentencepiece,
    "metaspace": lambda: sentencepiece(metaspace=True),
}


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_tokens_are_those_of_transformers(load: Callable[..., Any], tmp_path: Path, kind: str) -> None:
    tokenizer = TOKENIZERS[kind]()
    llama = load(tokenizer_file(tmp_path, tokenizer))
    for text in TEXTS:
        assert ids_in(llama, text) == tokenizer(text)["input_ids"]
        assert llama.detokenize(tokenizer(text, add_special_tokens=False)["input_ids"]).decode().strip() == text.strip()


def test_special_and_added_tokens_in_a_text_are_found(load: Callable[..., Any], tmp_path: Path) -> None:
    tokenizer = byte_level()
    llama = load(tokenizer_file(tmp_path, tokenizer))
    text = "<|im_start|>old river<|im_end|>\n<tool>mill</s>"
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.convert_tokens_to_ids("<|im_end|>") in ids
    assert ids_in(llama, text, special=True) == ids
    plain = ids_in(llama, text)  # special ones are text there, added ones are not
    assert tokenizer.convert_tokens_to_ids("<|im_end|>") not in plain
    assert tokenizer.convert_tokens_to_ids("<tool>") in plain
    assert llama.token_bos() == tokenizer.bos_token_id
    assert llama.token_eos() == tokenizer.eos_token_id


@pytest.mark.parametrize("name", ["stories260K", "babyllama105"])
def test_a_real_checkpoint_tells_the_same_story(
    load: Callable[..., Any], shared_models: Path, tmp_path: Path, name: str
) -> None:
    result = write_gguf(shared_models / name, tmp_path / "m.gguf", outtype="f32")
    tokenizer = AutoTokenizer.from_pretrained(shared_models / name)
    model = AutoModelForCausalLM.from_pretrained(shared_models / name, dtype=torch.float32).eval()
    llama = load(result.file)
    prompt = "Once upon a time"
    ids = tokenizer(prompt)["input_ids"]
    assert ids_in(llama, prompt) == ids
    with torch.no_grad():
        expected = model.generate(torch.tensor([ids]), max_new_tokens=12, do_sample=False)[0, len(ids) :].tolist()
    found = [token for token, _ in zip(llama.generate(ids, temp=0.0, repeat_penalty=1.0), range(12), strict=False)]
    assert found == expected


def test_the_bundled_model_is_read_with_the_closest_way_to_cut_text(load: Callable[..., Any], tmp_path: Path) -> None:
    folder = demo_model()
    with pytest.raises(RuntimeFormatError, match="pass --pre-tokenizer superbpe"):
        write_gguf(folder, tmp_path / "m.gguf")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    llama = load(write_gguf(folder, tmp_path / "m.gguf", pre_tokenizer="superbpe").file)
    for text in (PROMPT, "for item in items:\n    if item:\n        total += 1234\n"):
        assert ids_in(llama, text) == tokenizer(text)["input_ids"]
