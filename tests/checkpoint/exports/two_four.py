"""Checkpoint folders whose linear layers are 2:4-sparse."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tests.checkpoint.exports.folders import model_for
from tests.checkpoint.exports.tokenizers import byte_level
from torch import nn
from transformers import PreTrainedModel

HEAD = "lm_head"


@torch.no_grad()
def make_two_four_(weight: torch.Tensor) -> None:
    """Zero the two smallest of every four weights of a row."""
    groups = weight.view(len(weight), -1, 4)
    groups.scatter_(-1, groups.abs().argsort(-1)[..., :2], 0)


def linear_layers(model: nn.Module) -> dict[str, nn.Linear]:
    """The linear layers but the head, by name."""
    return {name: each for name, each in model.named_modules() if isinstance(each, nn.Linear) and name != HEAD}


def two_four_folder(
    folder: Path,
    family: str = "llama",
    *,
    dense: Sequence[str] = (),
    dtype: torch.dtype = torch.bfloat16,
    shard_size: str = "5GB",
    **changes: Any,
) -> PreTrainedModel:
    """Save a small 2:4 model with its tokenizer; returns it. The layers of the names in ``dense`` stay dense."""
    tokenizer = byte_level()
    model = model_for(tokenizer, family, **changes).to(dtype)
    for name, layer in linear_layers(model).items():
        if name not in dense:
            make_two_four_(layer.weight)
    model.save_pretrained(folder, max_shard_size=shard_size)
    tokenizer.save_pretrained(folder)
    return model
