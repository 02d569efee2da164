"""BLOOM and MPT, whose attention scores contain an ALiBi slope per head.

Their configs set neither the width of a head nor that of the FFN (four times the hidden size), so every pruned model of
these families needs our modeling file.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from loraprune.architectures.parts import channels
from loraprune.architectures.spec import ArchitectureSpec, DimensionSpec, MemberSpec, Number, StackSpec

if TYPE_CHECKING:
    from transformers import PretrainedConfig

REFUSAL = "all blocks share one set of ALiBi slopes"


def _family(model_type: str, blocks: str, *dimensions: DimensionSpec) -> ArchitectureSpec:
    # No `decoder`: one tensor of slopes passes through all blocks, so they cannot be cut one after the other.
    return ArchitectureSpec(
        model_type=model_type,
        blocks_return_tuples=True,
        stacks=(StackSpec(blocks=blocks, dimensions=dimensions),),
        ragged_refusal=REFUSAL,
    )


def _by_head_count(spec: ArchitectureSpec, config: PretrainedConfig) -> ArchitectureSpec:
    """Return the description, without heads if their number is not a power of two.

    Of n = 2^k slopes, every second one is a slope of n / 2 heads, so every second head can stay. Other numbers of
    heads have slopes from two series, which no smaller number shares.
    """
    heads = config.num_attention_heads
    if heads & (heads - 1) == 0:
        return spec
    (stack,) = spec.stacks
    others = tuple(dimension for dimension in stack.dimensions if not dimension.alibi)
    return replace(spec, stacks=(replace(stack, dimensions=others),), decoder="transformer", ragged_refusal=None)


def _heads(attention: str, fused: MemberSpec, output: str, remembered: str) -> DimensionSpec:
    """Heads behind a fused q, k, v; the model stores their number as well, and creates the slopes of all blocks."""
    return DimensionSpec(
        kind="heads",
        members=(fused,),
        consumer=MemberSpec(module=output, axis="input", segments=(("head",),)),
        numbers=(
            Number(module=attention, name=remembered, count="groups"),
            Number(module="/transformer", name="num_heads", count="groups"),
        ),
        default=False,
        tied=True,
        alibi=True,
    )


BLOOM = _family(
    "bloom",
    "transformer.h",
    _heads(
        "self_attention",
        MemberSpec(module="self_attention.query_key_value", axis="output", segments=(("head", "head", "head"),)),
        "self_attention.dense",
        "num_heads",
    ),
    channels("mlp.dense_h_to_4h", consumer="mlp.dense_4h_to_h"),
)

MPT = _family(
    "mpt",
    "transformer.blocks",
    _heads(
        "attn",
        MemberSpec(module="attn.Wqkv", axis="output", segments=(("head",), ("head",), ("head",))),
        "attn.out_proj",
        "n_heads",
    ),
    channels("ffn.up_proj", consumer="ffn.down_proj"),
)


def bloom(config: PretrainedConfig) -> ArchitectureSpec:
    """Return the description of BLOOM, with heads if their slopes allow it."""
    return _by_head_count(BLOOM, config)


def mpt(config: PretrainedConfig) -> ArchitectureSpec:
    """Return the description of MPT, with heads if their slopes allow it."""
    return _by_head_count(MPT, config)


ALIBI_BY_CONFIG = {"bloom": bloom, "mpt": mpt}
