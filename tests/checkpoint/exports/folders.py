"""Checkpoint folders of small models: uniform, and with widths that differ from layer to layer."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tests.checkpoint.exports.tokenizers import byte_level
from tests.checkpoints import byte_model
from tests.models import PROJECTIONS, features, kept_features, prunable_side
from transformers import PreTrainedModel, PreTrainedTokenizerBase

UNUSED_ROWS = 3
"""Rows of the embedding that no token uses, as many models have."""

Kept = Sequence[tuple[Sequence[int], Sequence[int]]]
"""KV heads and channels that stay in each layer."""

RAGGED: Kept = (((1, 3), range(40)), ((0, 1, 2), range(3, 53)))


def model_for(tokenizer: PreTrainedTokenizerBase, family: str = "llama", **changes: Any) -> PreTrainedModel:
    """A small random model with an embedding for a tokenizer."""
    values = {"vocab_size": len(tokenizer) + UNUSED_ROWS, "bos_token_id": tokenizer.bos_token_id}
    return byte_model(family, **{**values, "eos_token_id": tokenizer.eos_token_id, **changes})


def uniform_folder(
    folder: Path, family: str = "llama", *, tokenizer: PreTrainedTokenizerBase | None = None, **changes: Any
) -> PreTrainedModel:
    """Save a small model with its tokenizer; returns it."""
    tokenizer = tokenizer or byte_level()
    model = model_for(tokenizer, family, **changes)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model


def ragged_folder(
    folder: Path,
    family: str = "llama",
    *,
    kept: Kept = RAGGED,
    tokenizer: PreTrainedTokenizerBase | None = None,
    **changes: Any,
) -> PreTrainedModel:
    """Save a model cut to other widths in each layer; returns the whole one with what was cut off zeroed out.

    The two compute the same.
    """
    model = uniform_folder(folder, family, tokenizer=tokenizer, **changes)
    config = model.config
    weights = load_file(folder / "model.safetensors")
    blocks: dict[str, Mapping[str, int]] = {}
    shapes: dict[str, list[int]] = {}
    for layer, (heads, channels) in enumerate(kept):
        block = f"model.layers.{layer}"
        blocks[block] = {
            "num_attention_heads": len(heads) * config.num_attention_heads // config.num_key_value_heads,
            "num_key_value_heads": len(heads),
            "intermediate_size": len(channels),
        }
        for name in PROJECTIONS:
            path = f"{block}.{'self_attn' if name[0] in 'qkvo' else 'mlp'}.{name}"
            rows = torch.tensor(kept_features(config, name, heads, channels))
            for leaf in ("weight", "bias"):
                key = f"{path}.{leaf}"
                if key in weights and (leaf == "weight" or prunable_side(name) == 0):
                    weights[key] = weights[key].index_select(prunable_side(name), rows).contiguous()
                    shapes[key] = list(weights[key].shape)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    values = json.loads((folder / "config.json").read_text())
    values["model_type"] = f"loraprune_{family}"
    values["pruned"] = {
        "format": 1, "base_model_type": family, "blocks": blocks, "shapes": shapes, "lists": {}, "numbers": {}
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(values))
    return _zeroed(model, kept)


@torch.no_grad()
def _zeroed(model: PreTrainedModel, kept: Kept) -> PreTrainedModel:
    queries = model.config.num_attention_heads // model.config.num_key_value_heads
    for block, (heads, channels) in zip(model.model.layers, kept, strict=True):
        for consumer, alive in (
            (block.self_attn.o_proj, features(heads, queries * model.config.head_dim)),
            (block.mlp.down_proj, list(channels)),
        ):
            mask = torch.zeros(consumer.in_features)
            mask[alive] = 1
            consumer.weight.mul_(mask)
    return model


def change_config(folder: Path, **changes: Any) -> None:
    """Change values of a folder's ``config.json``; None takes one out."""
    path = folder / "config.json"
    values = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in values.items() if value is not None}))
