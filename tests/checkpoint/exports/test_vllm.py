"""A uniform result is what vLLM's stock classes read: its config and its tensors, written out by hand.

vLLM itself is not run here. Its Llama, Mistral and Qwen3 take ``head_dim`` from the config. Its Qwen2 divides the
hidden size by the number of heads, so that a Qwen2 is what it reads only while all heads are there.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from tests.checkpoints import VOCABULARY, byte_model
from tests.models import with_lora

from loraprune.checkpoint.save import finish, save_checkpoint
from loraprune.structure.describe import describe
from loraprune.structure.plan import Plan
from loraprune.surgery.slicing import slice_

ROPE = {"rope_type": "default", "rope_theta": 500000.0}
ROPE_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
COMMON = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "vocab_size": VOCABULARY,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 64,
    "hidden_act": "silu",
    "dtype": "bfloat16",
    "rope_parameters": ROPE,
}
CHANGES: dict[str, dict[str, Any]] = {
    "llama": {"rope_parameters": ROPE_LLAMA3, "attention_bias": True, "mlp_bias": True},
    "mistral": {"sliding_window": 48},
    "qwen2": {},
    "qwen3": {"tie_word_embeddings": True},
}
HEADS = {f"layers.{layer}.heads": kept for layer, kept in enumerate([(1, 3), (0, 2)])}
CHANNELS = {f"layers.{layer}.channels": tuple(range(layer, layer + 40)) for layer in range(2)}
PLANS = dict.fromkeys(CHANGES, HEADS | CHANNELS) | {"qwen2": CHANNELS}
HALF = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 4, "intermediate_size": 40}
BY_HAND: dict[str, dict[str, Any]] = {
    "llama": {
        **COMMON,
        **HALF,
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "rope_parameters": ROPE_LLAMA3,
        "tie_word_embeddings": False,
        "attention_bias": True,
        "mlp_bias": True,
    },
    "mistral": {
        **COMMON,
        **HALF,
        "architectures": ["MistralForCausalLM"],
        "model_type": "mistral",
        "sliding_window": 48,
        "tie_word_embeddings": False,
    },
    "qwen2": {
        **COMMON,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "intermediate_size": 40,
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "sliding_window": None,
        "use_sliding_window": False,
        "tie_word_embeddings": False,
    },
    "qwen3": {
        **COMMON,
        **HALF,
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "attention_bias": False,
        "sliding_window": None,
        "use_sliding_window": False,
        "tie_word_embeddings": True,
    },
}


@pytest.fixture(params=CHANGES)
def result(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Path]:
    """A family and a folder with its pruned result, which was tuned with LoRA and merged into 16 bits."""
    family = request.param
    model = byte_model(family, rms_norm_eps=1e-5, **({"rope_parameters": ROPE} | CHANGES[family]))
    structure = describe(model)
    full = Plan.full(structure)
    plan = Plan({**full.kept, **PLANS[family]})
    adapted = with_lora(model)
    slice_(adapted, structure, full, plan)
    save_checkpoint(
        tmp_path / "out", finish(adapted, structure, plan, torch.bfloat16), None, record={}, card="# A card\n"
    )
    return family, tmp_path / "out"


def test_every_field_is_the_one_written_by_hand(result: tuple[str, Path]) -> None:
    family, folder = result
    config = json.loads((folder / "config.json").read_text())
    assert {field: config.get(field) for field in BY_HAND[family]} == BY_HAND[family]
    assert "auto_map" not in config
    assert "quantization_config" not in config
    # A width under a name of our own would not be read.
    assert not any("pruned" in field for field in config)


def test_the_head_width_is_the_one_that_vllm_uses(result: tuple[str, Path]) -> None:
    family, folder = result
    config = json.loads((folder / "config.json").read_text())
    derived = config["hidden_size"] // config["num_attention_heads"]
    used = derived if family == "qwen2" else config["head_dim"]
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        rows = file.get_slice("model.layers.0.self_attn.k_proj.weight").get_shape()[0]
    assert rows == config["num_key_value_heads"] * used


def test_tensors_have_the_names_and_shapes_that_follow_from_the_config(result: tuple[str, Path]) -> None:
    family, folder = result
    by_hand = BY_HAND[family]
    queries, keys = by_hand["num_attention_heads"] * 4, by_hand["num_key_value_heads"] * 4
    expected = {"model.embed_tokens.weight": [VOCABULARY, 32], "model.norm.weight": [32]}
    if not by_hand["tie_word_embeddings"]:
        expected["lm_head.weight"] = [VOCABULARY, 32]
    for layer in range(2):
        block = {
            "input_layernorm.weight": [32],
            "post_attention_layernorm.weight": [32],
            "self_attn.q_proj.weight": [queries, 32],
            "self_attn.k_proj.weight": [keys, 32],
            "self_attn.v_proj.weight": [keys, 32],
            "self_attn.o_proj.weight": [32, queries],
            "mlp.gate_proj.weight": [40, 32],
            "mlp.up_proj.weight": [40, 32],
            "mlp.down_proj.weight": [32, 40],
        }
        if family in ("llama", "qwen2"):
            block |= {
                f"self_attn.{name}_proj.bias": [rows] for name, rows in zip("qkv", (queries, keys, keys), strict=True)
            }
        if family == "llama":
            block |= {"self_attn.o_proj.bias": [32], "mlp.down_proj.bias": [32]}
            block |= {"mlp.gate_proj.bias": [40], "mlp.up_proj.bias": [40]}
        if family == "qwen3":
            block |= {"self_attn.q_norm.weight": [4], "self_attn.k_norm.weight": [4]}
        expected |= {f"model.layers.{layer}.{name}": shape for name, shape in block.items()}
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        found = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118 - a handle, not a dict
        kinds = {file.get_slice(name).get_dtype() for name in found}
    assert found == expected
    assert kinds == {"BF16"}
