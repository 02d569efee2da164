"""Llama and the families with its layout: separate q, k, v, o and gate, up, down projections."""

from __future__ import annotations

from dataclasses import replace

from loraprune.architectures.parts import channels
from loraprune.architectures.spec import (
    ArchitectureSpec,
    DimensionSpec,
    MemberSpec,
    Number,
    ResidualStreamSpec,
    StackSpec,
)

HEADS = DimensionSpec(
    kind="heads",
    members=(
        MemberSpec(module="self_attn.q_proj", axis="output", segments=(("query",),)),
        MemberSpec(module="self_attn.k_proj", axis="output", segments=(("kv",),)),
        MemberSpec(module="self_attn.v_proj", axis="output", segments=(("kv",),)),
    ),
    consumer=MemberSpec(module="self_attn.o_proj", axis="input", segments=(("query",),)),
    widths=(
        Number(name="num_key_value_heads", count="groups"),
        Number(name="num_attention_heads", count="queries"),
    ),
)
QUERY_HEADS = DimensionSpec(
    kind="query_heads",
    members=(MemberSpec(module="self_attn.q_proj", axis="output", segments=(("head",),)),),
    consumer=MemberSpec(module="self_attn.o_proj", axis="input", segments=(("head",),)),
    widths=(Number(name="num_attention_heads", count="groups"),),
    numbers=(Number(module="self_attn", name="num_key_value_groups", count="stratum"),),
    strata="kv",
    default=False,
)
CHANNELS = channels("mlp.gate_proj", "mlp.up_proj", consumer="mlp.down_proj", width="intermediate_size")
STREAM = ResidualStreamSpec(
    embedding="model.embed_tokens",
    final_norm="model.norm",
    heads=("lm_head", "score"),
    norms=("input_layernorm", "post_attention_layernorm"),
    readers=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.gate_proj", "mlp.up_proj"),
    writers=("self_attn.o_proj", "mlp.down_proj"),
)
BLOCK = (HEADS, QUERY_HEADS, CHANNELS)

LLAMA = ArchitectureSpec(
    model_type="llama",
    decoder="model",
    stacks=(StackSpec(blocks="model.layers", dimensions=BLOCK),),
    heads_divide_hidden=True,
    relaxed_class="mistral",
    stream=STREAM,
)
MISTRAL = replace(LLAMA, model_type="mistral", heads_divide_hidden=False, relaxed_class=None)
# Qwen2 has biases on q, k and v; Qwen3 has norms of head_dim on q and k. Neither changes the coupling: a bias is cut
# with the rows of its layer, and one norm serves all heads.
QWEN2 = replace(MISTRAL, model_type="qwen2")
QWEN3 = replace(MISTRAL, model_type="qwen3")

LLAMA_SPECS = (LLAMA, MISTRAL, QWEN2, QWEN3)
