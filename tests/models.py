"""Small models with random weights, made on the spot, and what tests do with them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    MistralConfig,
    PretrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
    TrainingArguments,
)

CONFIGS: dict[str, type[PretrainedConfig]] = {
    "llama": LlamaConfig,
    "mistral": MistralConfig,
    "qwen2": Qwen2Config,
    "qwen3": Qwen3Config,
}
FAMILIES = tuple(CONFIGS)
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
VOCABULARY = 40
RECOMPUTATION = next(
    name
    for name in ("activation_checkpointing", "gradient_checkpointing")
    if name in TrainingArguments.__dataclass_fields__
)
"""What the installed transformers calls it; before version 5.23 the new name is unknown."""


def tiny_config(family: str = "llama", **changes: Any) -> PretrainedConfig:
    """Two layers, 8 query heads on 4 KV heads, 24 channels; biases on q, k, v where the family has them."""
    values: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 4,
        "max_position_embeddings": 64,
        "tie_word_embeddings": False,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
        **changes,
    }
    return CONFIGS[family](**values)


@torch.no_grad()
def randomize_(model: nn.Module, seed: int) -> None:
    """Give every parameter random values of a size at which each of them is felt; norms around 1."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.copy_(1 + 0.3 * noise if "norm" in name else 0.25 * noise)


def tiny_model(
    family: str = "llama",
    *,
    seed: int = 0,
    attention: str = "eager",
    dtype: torch.dtype = torch.float32,
    **changes: Any,
) -> PreTrainedModel:
    """A model of a family in evaluation mode with random weights, norms and biases.

    ``changes`` go into the config: see :func:`tiny_config`.
    """
    config = tiny_config(family, **changes)
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention, dtype=dtype)
    randomize_(model, seed)
    return model.eval()


def with_lora(model: PreTrainedModel, *, seed: int = 0, **changes: Any) -> PeftModel:
    """Put LoRA with random factors, both of them nonzero, on every projection (or as ``changes`` say)."""
    values: dict[str, Any] = {
        "r": 3,
        "lora_alpha": 4,
        "lora_dropout": 0.0,
        "target_modules": list(PROJECTIONS),
        "init_lora_weights": False,
        "task_type": "CAUSAL_LM",
        **changes,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return get_peft_model(model, LoraConfig(**values), autocast_adapter_dtype=False).eval()


def token_ids(batch: int = 3, tokens: int = 9, *, seed: int = 0, vocabulary: int = VOCABULARY) -> torch.Tensor:
    """Random token ids, shape ``(batch, tokens)``."""
    return torch.randint(vocabulary, (batch, tokens), generator=torch.Generator().manual_seed(seed))


def logits_of(model: nn.Module, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=ids, use_cache=False).logits


def sequence_losses(model: nn.Module, ids: torch.Tensor) -> torch.Tensor:
    """Mean next-token loss of each sequence, in 32 bits at least, shape ``(batch,)``."""
    logits = model(input_ids=ids, use_cache=False).logits
    logits = logits.float() if logits.dtype.itemsize < 4 else logits
    losses = nn.functional.cross_entropy(logits[:, :-1].transpose(1, 2), ids[:, 1:], reduction="none")
    return losses.mean(1)


def projections(model: nn.Module, layer: int) -> dict[str, nn.Module]:
    """The seven linear layers of one decoder block by name; peft's wrapper where LoRA adapts one."""
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    block = base.model.layers[layer]
    return {name: getattr(block.self_attn if name[0] in "qkvo" else block.mlp, name) for name in PROJECTIONS}


def features(groups: Iterable[int], size: int) -> list[int]:
    """Positions that groups of ``size`` features take."""
    return [group * size + offset for group in groups for offset in range(size)]


def kept_features(config: PretrainedConfig, name: str, heads: Sequence[int], channels: Sequence[int]) -> list[int]:
    """Positions that stay on the prunable side of a projection when these KV heads and channels stay."""
    queries = config.num_attention_heads // config.num_key_value_heads
    sizes = {"q_proj": queries * config.head_dim, "o_proj": queries * config.head_dim, "k_proj": config.head_dim}
    sizes["v_proj"] = config.head_dim
    return features(heads, sizes[name]) if name in sizes else list(channels)


def prunable_side(name: str) -> int:
    """Dimension of a projection's weight that shrinks: rows of producers, columns of consumers."""
    return 1 if name in ("o_proj", "down_proj") else 0


def factors(module: nn.Module, adapter: str = "default") -> tuple[nn.Parameter, nn.Parameter]:
    """LoRA's A and B of a layer."""
    return module.lora_A[adapter].weight, module.lora_B[adapter].weight
