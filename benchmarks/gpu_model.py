"""Llamas of published shapes with random weights, made on the device layer by layer: for benchmarks/gpu.py."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Widths of a Llama, and the bits of its blocks' linear layers (16, 8 or 4)."""

    layers: int
    hidden: int
    channels: int
    heads: int
    vocabulary: int = 32000
    bits: int = 16

    def with_(self, **changes: Any) -> Shape:
        return replace(self, **changes)

    def config(self) -> LlamaConfig:
        return LlamaConfig(
            vocab_size=self.vocabulary,
            hidden_size=self.hidden,
            intermediate_size=self.channels,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.heads,
            max_position_embeddings=4096,
            tie_word_embeddings=False,
        )


PRESETS = {
    "llama-7b": Shape(layers=32, hidden=4096, channels=11008, heads=32),
    "llama-65b": Shape(layers=80, hidden=8192, channels=22016, heads=64),
    "tiny": Shape(layers=2, hidden=64, channels=128, heads=4, vocabulary=128),
}


def random_model(shape: Shape, device: torch.device, dtype: torch.dtype = torch.bfloat16) -> LlamaForCausalLM:
    """A model that never holds more than one linear layer beyond what it keeps.

    Raises:
        ImportError: 8 or 4 bits without bitsandbytes.
    """
    with torch.device("meta"):
        model = LlamaForCausalLM._from_config(shape.config(), attn_implementation="sdpa", dtype=dtype)
    torch.manual_seed(0)
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and ".layers." in name and shape.bits < 16:
            model.set_submodule(name, _quantized(_filled(module.weight, device), shape.bits, dtype))
            continue
        for parameter_name, parameter in list(module.named_parameters(recurse=False)):
            value = _filled(parameter, device) if parameter.dim() > 1 else torch.ones_like(parameter, device=device)
            setattr(module, parameter_name, nn.Parameter(value, requires_grad=False))
    # Its buffer follows from the config, and the one on the meta device holds nothing.
    model.model.rotary_emb = LlamaRotaryEmbedding(model.config).to(device)
    if shape.bits < 16:  # what peft looks at
        setattr(model, f"is_loaded_in_{shape.bits}bit", True)
    return model.requires_grad_(False)


def _filled(parameter: torch.Tensor, device: torch.device) -> torch.Tensor:
    return torch.empty(parameter.shape, dtype=parameter.dtype, device=device).normal_(0.0, 0.02)


def _quantized(weight: torch.Tensor, bits: int, dtype: torch.dtype) -> nn.Module:
    """A layer of LLM.int8 or NF4 (double quantization), as ``--load-in-8bit`` and ``--load-in-4bit`` make them."""
    import bitsandbytes as bnb

    out, into = weight.shape
    with torch.device("meta"):
        if bits == 8:
            layer: Any = bnb.nn.Linear8bitLt(into, out, bias=False, has_fp16_weights=False, threshold=6.0)
        else:
            layer = bnb.nn.Linear4bit(into, out, bias=False, compute_dtype=dtype, quant_type="nf4")
    device = weight.device
    if bits == 8:
        layer.weight = bnb.nn.Int8Params(weight, requires_grad=False, has_fp16_weights=False)._quantize(device)
    else:
        layer.weight = bnb.nn.Params4bit(weight, requires_grad=False, quant_type="nf4", module=layer).to(device)
    return layer


def with_lora(model: LlamaForCausalLM) -> Any:
    """The paper's adapter: rank 8, alpha 16, all seven projections."""
    return get_peft_model(model, LoraConfig(r=8, lora_alpha=16, target_modules=TARGETS, task_type="CAUSAL_LM"))
