"""T5 and its relatives: an encoder and a decoder, whose blocks pass on their position biases."""

from __future__ import annotations

from dataclasses import replace

from loraprune.architectures.parts import channels, heads
from loraprune.architectures.spec import ArchitectureSpec, ConfigKeys, DimensionSpec, MemberSpec, Number, StackSpec


def _attention(path: str, name: str) -> DimensionSpec:
    producers = (f"{path}.{letter}" for letter in "qkv")
    return replace(heads(*producers, consumer=f"{path}.o", width="num_heads"), name=name)


_SELF = _attention("layer.0.SelfAttention", "heads")
# The embedding of relative positions has one column per head. Only the first block has one and passes its biases on to
# all others, so head 3 is the same head everywhere.
_SELF = replace(
    _SELF,
    members=(
        *_SELF.members,
        MemberSpec(
            module="layer.0.SelfAttention.relative_attention_bias",
            axis="output",
            segments=(("one",),),
            optional=True,
        ),
    ),
    tied=True,
)
# Attention to the encoder has no position bias, so each block may lose different heads. But the first block creates
# zeros instead of a bias, one for each head in its stored number, and all blocks add them.
_CROSS = replace(
    _attention("layer.1.EncDecAttention", "cross_heads"),
    numbers=(Number(module="layer.1.EncDecAttention", name="n_heads", count="groups"),),
)


def _channels(path: str) -> DimensionSpec:
    """Channels with one producer in the original version, and two in the gated version (T5 1.1, FLAN-T5)."""
    one = channels(f"{path}.wi", f"{path}.wi_0", f"{path}.wi_1", consumer=f"{path}.wo", width="d_ff")
    return replace(one, members=tuple(replace(member, optional=True) for member in one.members))


T5 = ArchitectureSpec(
    model_type="t5",
    stacks=(
        StackSpec(name="encoder", blocks="encoder.block", dimensions=(_SELF, _channels("layer.1.DenseReluDense"))),
        StackSpec(
            name="decoder", blocks="decoder.block", dimensions=(_SELF, _CROSS, _channels("layer.2.DenseReluDense"))
        ),
    ),
    config=ConfigKeys(heads="num_heads", kv_heads="num_heads", head_dim="d_kv", hidden="d_model"),
    auto_class="AutoModelForSeq2SeqLM",
    ragged_refusal="all blocks of a stack share the position biases of its first block, head by head",
)
MT5 = replace(T5, model_type="mt5")

T5_SPECS = (T5, MT5)
