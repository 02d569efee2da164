"""Decoders with Llama's names and small differences: other norms, other biases, an FFN without a gate."""

from __future__ import annotations

from dataclasses import replace

from loraprune.architectures.llama import BLOCK, CHANNELS, HEADS, MISTRAL, QUERY_HEADS, STREAM
from loraprune.architectures.parts import channels, without_widths
from loraprune.architectures.spec import ArchitectureSpec, DimensionSpec, MemberSpec, Number, RowUnit, StackSpec


def _family(model_type: str, *dimensions: DimensionSpec) -> ArchitectureSpec:
    stack = StackSpec(blocks="model.layers", dimensions=dimensions or BLOCK)
    return replace(MISTRAL, model_type=model_type, stacks=(stack,), stream=None)


def _with_norms(dimension: DimensionSpec, *norms: MemberSpec) -> DimensionSpec:
    return replace(dimension, members=(*dimension.members, *norms))


def _per_group(module: str, unit: RowUnit) -> MemberSpec:
    return MemberSpec(module=module, axis="output", segments=((unit,),), optional=True)


def _over_all(module: str, unit: RowUnit) -> MemberSpec:
    return MemberSpec(module=module, axis="norm", segments=((unit,),))


# Differences only in class names, biases that are cut with their layers, and parts that do not depend on a width: more
# norms in a block (Gemma 2 and 3), norms of head_dim (Gemma 3), multipliers (Granite), layers without rotary embedding
# (SmolLM3). If the config has no field `head_dim`, the classes still read one that is added.
MINISTRAL = replace(_family("ministral"), stream=STREAM)
MINISTRAL3 = replace(_family("ministral3"), stream=STREAM)
GEMMA = _family("gemma")
GEMMA2 = replace(_family("gemma2"), heads_divide_hidden=True)
GEMMA3 = replace(_family("gemma3_text"), heads_divide_hidden=True)
SMOLLM3 = replace(_family("smollm3"), stream=STREAM)
GRANITE = replace(_family("granite"), stream=STREAM)

# One norm over all query heads, one over all keys: the mean square is that of the current heads.
OLMO2 = _family(
    "olmo2",
    _with_norms(HEADS, _over_all("self_attn.q_norm", "query"), _over_all("self_attn.k_norm", "kv")),
    _with_norms(QUERY_HEADS, _over_all("self_attn.q_norm", "head")),
    CHANNELS,
)

# A separate norm per head, as the rows of one weight; only some of the models have it.
COHERE = _family(
    "cohere",
    _with_norms(HEADS, _per_group("self_attn.q_norm", "queries"), _per_group("self_attn.k_norm", "one")),
    _with_norms(QUERY_HEADS, _per_group("self_attn.q_norm", "one")),
    CHANNELS,
)

# Numbers of heads that the modules of some classes store; those of transformers 4 read all of them.
_QUERIES = Number(module="self_attn", name="num_heads", count="queries")
_GROUPS = Number(module="self_attn", name="num_key_value_heads", count="groups")
_QUERIES_ALONE = Number(module="self_attn", name="num_heads", count="groups")

# The same as a list of norms. The width of a head is always the hidden size divided by the number of heads, so fewer
# heads need our modeling file.
STABLELM = _family(
    "stablelm",
    replace(
        without_widths(
            _with_norms(
                HEADS,
                _per_group("self_attn.q_layernorm.norms", "queries"),
                _per_group("self_attn.k_layernorm.norms", "one"),
            )
        ),
        numbers=(
            _QUERIES,
            _GROUPS,
            Number(module="self_attn", name="hidden_size", count="queries", times="head_dim"),
        ),
    ),
    replace(
        without_widths(_with_norms(QUERY_HEADS, _per_group("self_attn.q_layernorm.norms", "one"))),
        numbers=(
            *QUERY_HEADS.numbers,
            _QUERIES_ALONE,
            Number(module="self_attn", name="hidden_size", count="groups", times="head_dim"),
        ),
    ),
    CHANNELS,
)

NEMOTRON = _family(
    "nemotron",
    replace(HEADS, numbers=(_QUERIES, _GROUPS)),
    replace(QUERY_HEADS, numbers=(*QUERY_HEADS.numbers, _QUERIES_ALONE)),
    channels("mlp.up_proj", consumer="mlp.down_proj", width="intermediate_size"),
)
STARCODER2 = _family(
    "starcoder2", HEADS, QUERY_HEADS, channels("mlp.c_fc", consumer="mlp.c_proj", width="intermediate_size")
)

LLAMA_RELATIVES_SPECS = (
    MINISTRAL,
    MINISTRAL3,
    GEMMA,
    GEMMA2,
    GEMMA3,
    SMOLLM3,
    GRANITE,
    OLMO2,
    COHERE,
    STABLELM,
    NEMOTRON,
    STARCODER2,
)
