"""GPT-2, GPT-Neo, GPT-J, GPT-NeoX (Pythia) and OPT.

In all of them the width of a head is the hidden size divided by the number of heads: their configs cannot say fewer
heads, and a model that has lost some needs our modeling file.
"""

from __future__ import annotations

from loraprune.architectures.spec import ArchitectureSpec, DimensionSpec, MemberSpec, Number, StackSpec


def _separate(attention: str, remembered: str) -> DimensionSpec:
    """Heads with separate q, k and v, in a module that remembers how many there are."""
    return DimensionSpec(
        kind="heads",
        members=tuple(
            MemberSpec(module=f"{attention}.{name}_proj", axis="output", segments=(("head",),)) for name in "qkv"
        ),
        consumer=MemberSpec(module=f"{attention}.out_proj", axis="input", segments=(("head",),)),
        numbers=(Number(module=attention, name=remembered, count="groups"),),
        default=False,
    )


def _channels(producer: str, consumer: str, width: str) -> DimensionSpec:
    return DimensionSpec(
        kind="channels",
        members=(MemberSpec(module=producer, axis="output", segments=(("channel",),)),),
        consumer=MemberSpec(module=consumer, axis="input", segments=(("channel",),)),
        widths=(Number(name=width, count="groups"),),
        fine=True,
    )


GPT2 = ArchitectureSpec(
    model_type="gpt2",
    decoder="transformer",
    stacks=(
        StackSpec(
            blocks="transformer.h",
            dimensions=(
                DimensionSpec(
                    kind="heads",
                    members=(
                        MemberSpec(module="attn.c_attn", axis="output", segments=(("head",), ("head",), ("head",))),
                    ),
                    consumer=MemberSpec(module="attn.c_proj", axis="input", segments=(("head",),)),
                    # The width by which the fused output is split.
                    numbers=(Number(module="attn", name="split_size", count="groups", times="head_dim"),),
                    default=False,
                ),
                _channels("mlp.c_fc", "mlp.c_proj", "n_inner"),
            ),
        ),
    ),
)

GPT_NEO = ArchitectureSpec(
    model_type="gpt_neo",
    decoder="transformer",
    blocks_return_tuples=True,
    stacks=(
        StackSpec(
            blocks="transformer.h",
            dimensions=(
                _separate("attn.attention", "num_heads"),
                _channels("mlp.c_fc", "mlp.c_proj", "intermediate_size"),
            ),
        ),
    ),
)

GPTJ = ArchitectureSpec(
    model_type="gptj",
    decoder="transformer",
    blocks_return_tuples=True,
    stacks=(
        StackSpec(
            blocks="transformer.h",
            dimensions=(
                _separate("attn", "num_attention_heads"),
                _channels("mlp.fc_in", "mlp.fc_out", "n_inner"),
            ),
        ),
    ),
)

GPT_NEOX = ArchitectureSpec(
    model_type="gpt_neox",
    decoder="gpt_neox",
    stacks=(
        StackSpec(
            blocks="gpt_neox.layers",
            dimensions=(
                DimensionSpec(
                    kind="heads",
                    # q, k and v of each head stand together; what a module knows of it is the width of one head.
                    members=(
                        MemberSpec(
                            module="attention.query_key_value", axis="output", segments=(("head", "head", "head"),)
                        ),
                    ),
                    consumer=MemberSpec(module="attention.dense", axis="input", segments=(("head",),)),
                    default=False,
                ),
                _channels("mlp.dense_h_to_4h", "mlp.dense_4h_to_h", "intermediate_size"),
            ),
        ),
    ),
)

OPT = ArchitectureSpec(
    model_type="opt",
    decoder="model.decoder",
    stacks=(
        StackSpec(
            blocks="model.decoder.layers",
            dimensions=(_separate("self_attn", "num_heads"), _channels("fc1", "fc2", "ffn_dim")),
        ),
    ),
)

SPECS = (GPT2, GPT_NEO, GPTJ, GPT_NEOX, OPT)
