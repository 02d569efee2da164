"""Quantized models of a few thousand parameters, on the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.models import tiny_model
from transformers import AutoModelForCausalLM, PreTrainedModel

from loraprune.checkpoint.load import quantization_config
from loraprune.layers.quantized import prepare_
from loraprune.options.precision import QUANTIZATIONS

WIDTHS: dict[str, Any] = {
    "hidden_size": 128,
    "intermediate_size": 192,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
}
"""Heads take whole blocks of 64 weights, and channels do not."""


def need(quantization: str) -> None:
    """Skip where the package of a quantization is missing."""
    pytest.importorskip(QUANTIZATIONS[quantization])


def quantized(folder: Path, quantization: str, *, prepared: bool = True, **further: Any) -> PreTrainedModel:
    """The model of a folder, quantized."""
    need(quantization)
    values = {"quantization_config": quantization_config(quantization, torch.float32), **further}
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, device_map={"": "cpu"}, **values)
    if prepared:
        prepare_(model)
    return model


def plain_folder(folder: Path, **changes: Any) -> Path:
    """A plain checkpoint."""
    tiny_model("llama", **{**WIDTHS, **changes}).save_pretrained(folder)
    return folder
