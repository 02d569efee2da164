"""Falcon in its three layouts.

The width of a head is the hidden size divided by the number of heads. So the config cannot state fewer heads, and a
model that has lost heads needs our modeling file.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from loraprune.architectures.parts import channels, decoder
from loraprune.architectures.spec import ArchitectureSpec, ConfigKeys, DimensionSpec, MemberSpec, Number

if TYPE_CHECKING:
    from transformers import PretrainedConfig

_CHANNELS = channels("mlp.dense_h_to_4h", consumer="mlp.dense_4h_to_h", width="ffn_hidden_size")
_QUERIES = Number(module="self_attention", name="num_heads", count="queries")
_KV = Number(module="self_attention", name="num_kv_heads", count="groups")

# Each KV head follows its query heads, so a group is one range of rows. Fewer query heads per KV head would be several
# ranges of different kinds, which segments cannot express.
_GROUPED = DimensionSpec(
    kind="heads",
    members=(MemberSpec(module="self_attention.query_key_value", axis="output", segments=(("query", "kv", "kv"),)),),
    consumer=MemberSpec(module="self_attention.dense", axis="input", segments=(("query",),)),
    numbers=(_QUERIES, _KV),
    default=False,
)
# All query heads, then the only key and the only value, which stay.
_MULTI_QUERY = DimensionSpec(
    kind="query_heads",
    members=(MemberSpec(module="self_attention.query_key_value", axis="output", segments=(("head",),), rest=True),),
    consumer=MemberSpec(module="self_attention.dense", axis="input", segments=(("head",),)),
    numbers=(Number(module="self_attention", name="num_heads", count="groups"),),
    default=False,
)


def _falcon(kv_heads: str, *dimensions: DimensionSpec) -> ArchitectureSpec:
    spec = decoder("falcon", "transformer", "h", *dimensions, blocks_return_tuples=True)
    return replace(spec, config=ConfigKeys(kv_heads=kv_heads))


def falcon(config: PretrainedConfig) -> ArchitectureSpec:
    """Return the description of the layout in a config.

    With ALiBi, heads are left out: the decoder divides the slopes by a head width that it derives from the number of
    heads, so fewer heads would get other slopes.
    """
    alibi = bool(getattr(config, "alibi", False))
    if getattr(config, "new_decoder_architecture", False):
        return _falcon("num_kv_heads", *(() if alibi else (_GROUPED,)), _CHANNELS)
    # The older layouts have one KV head or as many as query heads, whatever `num_kv_heads` is.
    heads = _MULTI_QUERY if getattr(config, "multi_query", True) else _GROUPED
    return _falcon("num_attention_heads", *(() if alibi else (heads,)), _CHANNELS)


FALCON_BY_CONFIG = {"falcon": falcon}
