"""T5 and its relatives: an encoder and a decoder, whose blocks hand each other their position biases."""

from __future__ import annotations

from dataclasses import replace

from loraprune.architectures.spec import ArchitectureSpec, ConfigKeys, DimensionSpec, MemberSpec, Number, StackSpec


def _attention(path: str, name: str) -> DimensionSpec:
    return DimensionSpec(
        kind="heads",
        name=name,
        members=(
            MemberSpec(module=f"{path}.q", axis="output", segments=(("head",),)),
            MemberSpec(module=f"{path}.k", axis="output", segments=(("head",),)),
            MemberSpec(module=f"{path}.v", axis="output", segments=(("head",),)),
        ),
        consumer=MemberSpec(module=f"{path}.o", axis="input", segments=(("head",),)),
        widths=(Number(name="num_heads", count="groups"),),
    )


_SELF = _attention("layer.0.SelfAttention", "heads")
# The embedding of relative positions has one column for each head. Only the first block has one and hands its biases
# to all others: head 3 is the same head everywhere.
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
# Attention to the encoder has no position bias, so that each block may lose heads of its own; but the first block makes
# zeros in the place of a bias, one for each head that it remembers, and all blocks add them.
_CROSS = replace(
    _attention("layer.1.EncDecAttention", "cross_heads"),
    numbers=(Number(module="layer.1.EncDecAttention", name="n_heads", count="groups"),),
)


def _channels(path: str) -> DimensionSpec:
    return DimensionSpec(
        kind="channels",
        members=(
            # One layer in the original, two in the gated version (T5 1.1, FLAN-T5).
            MemberSpec(module=f"{path}.wi", axis="output", segments=(("channel",),), optional=True),
            MemberSpec(module=f"{path}.wi_0", axis="output", segments=(("channel",),), optional=True),
            MemberSpec(module=f"{path}.wi_1", axis="output", segments=(("channel",),), optional=True),
        ),
        consumer=MemberSpec(module=f"{path}.wo", axis="input", segments=(("channel",),)),
        widths=(Number(name="d_ff", count="groups"),),
        fine=True,
    )


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
    ragged_refusal="the position biases of the first block are shared by all blocks of its stack, head by head",
)
MT5 = replace(T5, model_type="mt5")

SPECS = (T5, MT5)
