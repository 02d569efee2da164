"""GPT-2, GPT-Neo, GPT-J, GPT-NeoX (Pythia) and OPT.

In all of them, the width of a head is the hidden size divided by the number of heads. So their configs cannot state
fewer heads, and a model that has lost heads needs our modeling file.
"""

from __future__ import annotations

from dataclasses import replace

from loraprune.architectures.parts import channels, decoder, heads
from loraprune.architectures.spec import DimensionSpec, MemberSpec, Number


def _separate(attention: str, remembered: str) -> DimensionSpec:
    """Heads with separate q, k and v, in a module that stores their number."""
    producers = (f"{attention}.{name}_proj" for name in "qkv")
    return replace(
        heads(*producers, consumer=f"{attention}.out_proj"),
        numbers=(Number(module=attention, name=remembered, count="groups"),),
    )


_GPT2_HEADS = DimensionSpec(
    kind="heads",
    members=(MemberSpec(module="attn.c_attn", axis="output", segments=(("head",), ("head",), ("head",))),),
    consumer=MemberSpec(module="attn.c_proj", axis="input", segments=(("head",),)),
    # The width by which the fused output is split.
    numbers=(Number(module="attn", name="split_size", count="groups", times="head_dim"),),
    default=False,
)
# q, k and v of each head are adjacent; the modules store only the width of one head.
_NEOX_HEADS = DimensionSpec(
    kind="heads",
    members=(MemberSpec(module="attention.query_key_value", axis="output", segments=(("head", "head", "head"),)),),
    consumer=MemberSpec(module="attention.dense", axis="input", segments=(("head",),)),
    default=False,
)

GPT_SPECS = (
    replace(
        decoder("gpt2", "transformer", "h", _GPT2_HEADS, channels("mlp.c_fc", consumer="mlp.c_proj", width="n_inner")),
        numbered=("scale_attn_by_inverse_layer_idx",),
    ),
    replace(
        decoder(
            "gpt_neo",
            "transformer",
            "h",
            _separate("attn.attention", "num_heads"),
            channels("mlp.c_fc", consumer="mlp.c_proj", width="intermediate_size"),
            blocks_return_tuples=True,
        ),
        numbered=("attention_types",),
    ),
    decoder(
        "gptj",
        "transformer",
        "h",
        _separate("attn", "num_attention_heads"),
        channels("mlp.fc_in", consumer="mlp.fc_out", width="n_inner"),
        blocks_return_tuples=True,
    ),
    decoder(
        "gpt_neox",
        "gpt_neox",
        "layers",
        _NEOX_HEADS,
        channels("mlp.dense_h_to_4h", consumer="mlp.dense_4h_to_h", width="intermediate_size"),
    ),
    decoder(
        "opt",
        "model.decoder",
        "layers",
        _separate("self_attn", "num_heads"),
        channels("fc1", consumer="fc2", width="ffn_dim"),
    ),
)
