"""Mixtures of experts with Llama's attention: stacked experts behind a router, some with a shared expert."""

from __future__ import annotations

from dataclasses import replace

from loraprune.architectures.llama import CHANNELS, HEADS, QUERY_HEADS
from loraprune.architectures.parts import channels, decoder, without_widths
from loraprune.architectures.spec import ConfigKeys, DimensionSpec, MemberSpec, Number, RowUnit


def expert_channels(width: str) -> DimensionSpec:
    """FFN channels inside the experts: every expert keeps equally many, chosen separately.

    Args:
        width: name in the config of the FFN width of one expert.
    """
    return DimensionSpec(
        kind="expert_channels",
        # One tensor holds gate and up of all experts, (experts, [gate | up], hidden).
        members=(
            MemberSpec(
                module="mlp.experts",
                axis="output",
                segments=(("channel",), ("channel",)),
                parameter="gate_up_proj",
            ),
        ),
        consumer=MemberSpec(module="mlp.experts", axis="input", segments=(("channel",),), parameter="down_proj"),
        widths=(Number(name=width, count="stratum"),),
        strata="experts",
        fine=True,
        # The grouped matrix product, the default of transformers, requires rows that start at multiples of 16 bytes.
        multiple=8,
        optional=True,
    )


def experts(number: str, *, bias: bool = False) -> DimensionSpec:
    """Whole experts with their rows of the router.

    Args:
        number: name in the config of the number of routed experts.
        bias: whether the router adds its own bias before it chooses.
    """
    one: tuple[tuple[RowUnit, ...], ...] = (("one",),)
    correction = MemberSpec(module="mlp.gate", axis="output", segments=one, parameter="e_score_correction_bias")
    return DimensionSpec(
        kind="experts",
        members=(
            MemberSpec(module="mlp.experts", axis="experts", segments=one, parameter="gate_up_proj"),
            MemberSpec(module="mlp.gate", axis="output", segments=one),
            *((correction,) if bias else ()),
        ),
        consumer=MemberSpec(module="mlp.experts", axis="experts", segments=one, parameter="down_proj"),
        widths=(Number(name=number, count="groups"),),
        numbers=(
            Number(module="mlp.experts", name="num_experts", count="groups"),
            Number(module="mlp.gate", name="num_experts", count="groups"),
            # The load balancing loss uses the number as well.
            Number(module="/", name="num_experts", count="groups"),
        ),
        floor="num_experts_per_tok",
        default=False,
        optional=True,
    )


def ffn(kind: str, path: str, width: Number, **changes: object) -> DimensionSpec:
    """Channels of one gated FFN with separate layers, in the blocks that have it.

    Args:
        kind: kind of the dimension.
        path: path of the FFN below its block.
        width: number in the config that states its width.
        changes: values of other fields of the dimension.
    """
    gated = channels(f"{path}.gate_proj", f"{path}.up_proj", consumer=f"{path}.down_proj")
    return replace(gated, kind=kind, widths=(width,), optional=True, **changes)  # type: ignore[arg-type]


# Blocks of these families have either experts or one dense FFN (mlp_only_layers, decoder_sparse_step).
DENSE_CHANNELS = replace(CHANNELS, optional=True)
SHARED_CHANNELS = ffn(
    "shared_channels", "mlp.shared_expert", Number(name="shared_expert_intermediate_size", count="groups")
)
# A norm over all heads has the width of all heads, which the stock class derives from the hidden size.
NORMED_HEADS = without_widths(
    replace(
        HEADS,
        members=(
            *HEADS.members,
            MemberSpec(module="self_attn.q_norm", axis="norm", segments=(("query",),)),
            MemberSpec(module="self_attn.k_norm", axis="norm", segments=(("kv",),)),
        ),
    )
)
NORMED_QUERY_HEADS = without_widths(
    replace(
        QUERY_HEADS,
        members=(*QUERY_HEADS.members, MemberSpec(module="self_attn.q_norm", axis="norm", segments=(("head",),))),
    )
)

MIXTRAL = replace(
    decoder(
        "mixtral",
        "model",
        "layers",
        HEADS,
        QUERY_HEADS,
        expert_channels("intermediate_size"),
        experts("num_local_experts"),
    ),
    config=ConfigKeys(experts="num_local_experts"),
)
# The config of these families has no head_dim, but the stock class reads one that is added.
_QWEN = (HEADS, QUERY_HEADS, DENSE_CHANNELS, expert_channels("moe_intermediate_size"))
QWEN2_MOE = decoder("qwen2_moe", "model", "layers", *_QWEN, SHARED_CHANNELS, experts("num_experts"))
QWEN3_MOE = decoder("qwen3_moe", "model", "layers", *_QWEN, experts("num_experts"))
OLMOE = decoder(
    "olmoe",
    "model",
    "layers",
    NORMED_HEADS,
    NORMED_QUERY_HEADS,
    expert_channels("intermediate_size"),
    experts("num_experts"),
)

MOE_SPECS = (MIXTRAL, QWEN2_MOE, QWEN3_MOE, OLMOE)
