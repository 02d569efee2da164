"""BLOOM and MPT, whose attention scores carry an ALiBi slope for each head.

Their configs know neither the width of a head nor that of the FFN (four times the hidden size): every pruned model of
these families needs our modeling file.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from loraprune.architectures.spec import ArchitectureSpec, DimensionSpec, MemberSpec, Number, StackSpec

if TYPE_CHECKING:
    from transformers import PretrainedConfig

REFUSAL = "the ALiBi slopes of all heads are made once for all blocks"


def _channels(producer: str, consumer: str) -> DimensionSpec:
    return DimensionSpec(
        kind="channels",
        members=(MemberSpec(module=producer, axis="output", segments=(("channel",),)),),
        consumer=MemberSpec(module=consumer, axis="input", segments=(("channel",),)),
        fine=True,
    )


def _family(model_type: str, blocks: str, heads: DimensionSpec, channels: DimensionSpec) -> ArchitectureSpec:
    # No `decoder`: one tensor of slopes goes through all blocks, so that they cannot be cut one after the other.
    return ArchitectureSpec(
        model_type=model_type,
        blocks_return_tuples=True,
        stacks=(StackSpec(blocks=blocks, dimensions=(heads, channels)),),
        ragged_refusal=REFUSAL,
    )


def _by_head_count(spec: ArchitectureSpec, config: PretrainedConfig) -> ArchitectureSpec:
    """The description without heads where their number is no power of two.

    Of n = 2^k slopes every second one is a slope of n / 2 heads, so that every second head may stay. Other numbers of
    heads have slopes from two series, which no smaller number shares.
    """
    heads = config.num_attention_heads
    if heads & (heads - 1) == 0:
        return spec
    (stack,) = spec.stacks
    channels = tuple(dimension for dimension in stack.dimensions if not dimension.alibi)
    return replace(spec, stacks=(replace(stack, dimensions=channels),), decoder="transformer", ragged_refusal=None)


BLOOM = _family(
    "bloom",
    "transformer.h",
    DimensionSpec(
        kind="heads",
        members=(
            MemberSpec(module="self_attention.query_key_value", axis="output", segments=(("head", "head", "head"),)),
        ),
        consumer=MemberSpec(module="self_attention.dense", axis="input", segments=(("head",),)),
        numbers=(
            Number(module="self_attention", name="num_heads", count="groups"),
            Number(module="/transformer", name="num_heads", count="groups"),
        ),
        default=False,
        tied=True,
        alibi=True,
    ),
    _channels("mlp.dense_h_to_4h", "mlp.dense_4h_to_h"),
)

MPT = _family(
    "mpt",
    "transformer.blocks",
    DimensionSpec(
        kind="heads",
        members=(MemberSpec(module="attn.Wqkv", axis="output", segments=(("head",), ("head",), ("head",))),),
        consumer=MemberSpec(module="attn.out_proj", axis="input", segments=(("head",),)),
        numbers=(
            Number(module="attn", name="n_heads", count="groups"),
            Number(module="/transformer", name="num_heads", count="groups"),
        ),
        default=False,
        tied=True,
        alibi=True,
    ),
    _channels("ffn.up_proj", "ffn.down_proj"),
)


def bloom(config: PretrainedConfig) -> ArchitectureSpec:
    """BLOOM, with heads where their slopes allow it."""
    return _by_head_count(BLOOM, config)


def mpt(config: PretrainedConfig) -> ArchitectureSpec:
    """MPT, with heads where their slopes allow it."""
    return _by_head_count(MPT, config)


BY_CONFIG = {"bloom": bloom, "mpt": mpt}
