"""Mixtures of experts with Llama's attention: stacked experts behind a router, some with a shared expert."""

from __future__ import annotations

from dataclasses import replace

from loraprune.architectures.llama import CHANNELS, HEADS, QUERY_HEADS
from loraprune.architectures.parts import channels, decoder, without_widths
from loraprune.architectures.spec import ConfigKeys, DimensionSpec, MemberSpec, Number, RowUnit


def expert_channels(width: str) -> DimensionSpec:
    """FFN channels inside the experts: every expert keeps equally many, and each of them its own.

    Args:
        width: what the config calls the FFN width of one expert.
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
        # The grouped matrix product, transformers' default, wants rows that start at multiples of 16 bytes.
        multiple=8,
        optional=True,
    )


def experts(number: str, *, bias: bool = False) -> DimensionSpec:
    """Whole experts with their rows of the router.

    Args:
        number: what the config calls the number of routed experts.
        bias: the router adds a bias of its own before it chooses.
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
            # The load balancing loss counts them too.
            Number(module="/", name="num_experts", count="groups"),
        ),
        floor="num_experts_per_tok",
        default=False,
        optional=True,
    )


def ffn(kind: str, path: str, width: Number, **changes: object) -> DimensionSpec:
    """Channels of one gated FFN with layers of its own, in the blocks that have it.

    Args:
        kind: of the dimension.
        path: of the FFN below its block.
        width: what the config keeps of its width.
        changes: to other fields of the dimension.
    """
    gated = channels(f"{path}.gate_proj", f"{path}.up_proj", consumer=f"{path}.down_proj")
    return replace(gated, kind=kind, widths=(width,), optional=True, **changes)  # type: ignore[arg-type]


# Blocks of these families have either experts or one dense FFN (mlp_only_layers, decoder_sparse_step).
DENSE_CHANNELS = replace(CHANNELS, optional=True)
SHARED_CHANNELS = ffn(
    "shared_channels", "mlp.shared_expert", Number(name="shared_expert_intermediate_size", count="groups")
)
# A norm over all heads together has the width of all heads, which the stock class takes from the hidden size.
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
# The config of these families has no head_dim of its own, but the stock class reads one that is written there.
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
