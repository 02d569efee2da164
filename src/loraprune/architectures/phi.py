"""Phi (1 and 2) and Phi-3 (also Phi-3.5 and Phi-4)."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from loraprune.architectures.llama import CHANNELS, HEADS, MISTRAL, QUERY_HEADS, STREAM
from loraprune.architectures.parts import channels, without_widths
from loraprune.architectures.spec import ArchitectureSpec, DimensionSpec, MemberSpec, Number, StackSpec

if TYPE_CHECKING:
    from transformers import PretrainedConfig


def _family(model_type: str, *dimensions: DimensionSpec) -> ArchitectureSpec:
    stack = StackSpec(blocks="model.layers", dimensions=dimensions)
    return replace(MISTRAL, model_type=model_type, stacks=(stack,), stream=None)


_PHI_OUTPUT = MemberSpec(module="self_attn.dense", axis="input", segments=(("query",),))
_PHI_HEADS = replace(HEADS, consumer=_PHI_OUTPUT)
_PHI_QUERY_HEADS = replace(QUERY_HEADS, consumer=replace(_PHI_OUTPUT, segments=(("head",),)))
_PHI_CHANNELS = channels("mlp.fc1", consumer="mlp.fc2", width="intermediate_size")


def phi(config: PretrainedConfig) -> ArchitectureSpec:
    """Return the description of Phi with or without norms on queries and keys.

    The norms are as wide as the hidden size divided by the number of heads, whatever ``head_dim`` is. So with norms,
    fewer heads need our modeling file.
    """
    attention = (_PHI_HEADS, _PHI_QUERY_HEADS)
    if getattr(config, "qk_layernorm", False):
        attention = (without_widths(_PHI_HEADS), without_widths(_PHI_QUERY_HEADS))
    return _family("phi", *attention, _PHI_CHANNELS)


_PHI3_HEADS = replace(
    HEADS,
    members=(MemberSpec(module="self_attn.qkv_proj", axis="output", segments=(("query",), ("kv",), ("kv",))),),
    # The widths by which the fused output is split: one is read from the config in the forward pass.
    numbers=(
        Number(module="self_attn", name="config.num_attention_heads", count="queries"),
        Number(module="self_attn", name="num_key_value_heads", count="groups"),
    ),
)
_PHI3_QUERY_HEADS = replace(
    QUERY_HEADS,
    members=(MemberSpec(module="self_attn.qkv_proj", axis="output", segments=(("head",),), rest=True),),
    numbers=(*QUERY_HEADS.numbers, Number(module="self_attn", name="config.num_attention_heads", count="groups")),
)
_PHI3_CHANNELS = replace(
    CHANNELS,
    members=(MemberSpec(module="mlp.gate_up_proj", axis="output", segments=(("channel",), ("channel",))),),
)

_PHI3_STREAM = replace(STREAM, readers=("self_attn.qkv_proj", "mlp.gate_up_proj"))


def phi3(config: PretrainedConfig) -> ArchitectureSpec:
    """Return the description of Phi-3 with or without the rotary scaling of its long-context versions.

    The config compares the length of that scaling with the hidden size divided by the number of heads, and rejects
    fewer heads. So these need our modeling file.
    """
    attention = (_PHI3_HEADS, _PHI3_QUERY_HEADS)
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("short_factor") is not None or rope.get("long_factor") is not None:
        # Another hidden size is rejected for the same reason.
        return _family("phi3", without_widths(_PHI3_HEADS), without_widths(_PHI3_QUERY_HEADS), _PHI3_CHANNELS)
    return replace(_family("phi3", *attention, _PHI3_CHANNELS), stream=_PHI3_STREAM)


PHI_BY_CONFIG = {"phi": phi, "phi3": phi3}
