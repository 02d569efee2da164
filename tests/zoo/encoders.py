"""Small encoders of text and of images, and encoder-decoders."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from tests.models import token_ids
from tests.zoo.row import Inputs, Row, base_config
from transformers import (
    AutoModelForImageClassification,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    BertConfig,
    ConvNextConfig,
    DeiTConfig,
    Dinov2Config,
    MT5Config,
    PretrainedConfig,
    RobertaConfig,
    T5Config,
    ViTConfig,
    XLMRobertaConfig,
)

Config = type[PretrainedConfig]


def source_and_target() -> Inputs:
    """Token ids of three sequences, and of the three that answer them."""
    return {"input_ids": token_ids(), "decoder_input_ids": token_ids(tokens=7, seed=1)}


def images() -> Inputs:
    """Three images of 16 by 16 pixels."""
    return {"pixel_values": torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))}


def _t5(config: Config, **changes: Any) -> Callable[[], PretrainedConfig]:
    values = {"d_model": 32, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 4, "decoder_start_token_id": 0}
    return lambda: config(**base_config(**{**values, **changes}))


def _text(config: Config, **changes: Any) -> Callable[[], PretrainedConfig]:
    values = {"hidden_size": 32, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4}
    # Positions are numbered from behind the padding token.
    special = {"pad_token_id": 1, "max_position_embeddings": 64}
    return lambda: config(**{**base_config(), **values, **special, **changes})


def _vision(config: Config, **changes: Any) -> Callable[[], PretrainedConfig]:
    values = {"hidden_size": 32, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4}
    return lambda: config(**{**values, "image_size": 16, "patch_size": 4, "num_labels": 5, **changes})


TEXT: dict[str, Any] = {
    "kinds": ("channels",),
    "others": ("heads",),
    "stock": ("channels",),
    "auto": AutoModelForMaskedLM,
    "generates": False,
}
SEQ2SEQ: dict[str, Any] = {
    "kinds": ("heads", "channels"),
    "stock": ("heads", "channels"),
    "auto": AutoModelForSeq2SeqLM,
    "inputs": source_and_target,
    "generates": False,
}
VISION: dict[str, Any] = {
    "kinds": ("heads", "channels"),
    "stock": ("heads", "channels"),
    "auto": AutoModelForImageClassification,
    "inputs": images,
    "generates": False,
}

ROWS = (
    Row(name="t5", config=_t5(T5Config), **SEQ2SEQ),
    Row(
        name="t5, gated and untied",
        config=_t5(T5Config, feed_forward_proj="gated-gelu", tie_word_embeddings=False),
        **SEQ2SEQ,
    ),
    Row(name="mt5", config=_t5(MT5Config), **SEQ2SEQ),
    Row(name="bert", config=_text(BertConfig), **TEXT),
    Row(name="bert, untied", config=_text(BertConfig, tie_word_embeddings=False), **TEXT),
    Row(name="roberta", config=_text(RobertaConfig), **TEXT),
    Row(name="xlm-roberta", config=_text(XLMRobertaConfig), **TEXT),
    Row(name="vit", config=_vision(ViTConfig), **VISION),
    Row(name="vit without biases", config=_vision(ViTConfig, qkv_bias=False), **VISION),
    Row(name="deit", config=_vision(DeiTConfig, architectures=["DeiTForImageClassification"]), **VISION),
    Row(
        name="dinov2",
        config=_vision(Dinov2Config, mlp_ratio=2),
        **{**VISION, "kinds": ("heads",), "others": ("channels",), "stock": ("heads",)},
    ),
    Row(
        name="dinov2, gated",
        config=_vision(Dinov2Config, mlp_ratio=2, use_swiglu_ffn=True),
        **{**VISION, "kinds": ("heads",), "others": ("channels",), "stock": ("heads",)},
    ),
    Row(
        name="convnext",
        config=lambda: ConvNextConfig(
            hidden_sizes=[8, 12, 16, 24], depths=[1, 1, 2, 1], image_size=16, patch_size=2, num_labels=5
        ),
        **{**VISION, "kinds": ("channels",), "stock": ()},
        attentions=("eager",),
    ),
)
