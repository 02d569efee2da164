"""Vision transformers: ViT, DeiT and DINOv2."""

from __future__ import annotations

from loraprune.architectures.spec import ArchitectureSpec, DimensionSpec, MemberSpec, Number, StackSpec

# These configs have no field for the width of a head, but attention reads `head_dim` where a config has one. It is
# written at export, and then a smaller number of heads leaves each as wide as it was.
HEADS = DimensionSpec(
    kind="heads",
    members=(
        MemberSpec(module="attention.q_proj", axis="output", segments=(("head",),)),
        MemberSpec(module="attention.k_proj", axis="output", segments=(("head",),)),
        MemberSpec(module="attention.v_proj", axis="output", segments=(("head",),)),
    ),
    consumer=MemberSpec(module="attention.o_proj", axis="input", segments=(("head",),)),
    widths=(Number(name="num_attention_heads", count="groups"),),
)
CHANNELS = DimensionSpec(
    kind="channels",
    members=(MemberSpec(module="mlp.fc1", axis="output", segments=(("channel",),)),),
    consumer=MemberSpec(module="mlp.fc2", axis="input", segments=(("channel",),)),
    widths=(Number(name="intermediate_size", count="groups"),),
    fine=True,
)
# DINOv2 knows a whole multiple of the hidden size only, so that its config cannot say the width of a pruned FFN.
# A model has either the plain FFN or the gated one.
_DINOV2_PLAIN = DimensionSpec(
    kind="channels",
    members=CHANNELS.members,
    consumer=CHANNELS.consumer,
    fine=True,
    default=False,
    optional=True,
)
_DINOV2_GATED = DimensionSpec(
    kind="channels",
    members=(
        MemberSpec(module="mlp.gate_proj", axis="output", segments=(("channel",),)),
        MemberSpec(module="mlp.up_proj", axis="output", segments=(("channel",),)),
    ),
    consumer=MemberSpec(module="mlp.down_proj", axis="input", segments=(("channel",),)),
    fine=True,
    default=False,
    optional=True,
)


def _vision(model_type: str, blocks: str, *channels: DimensionSpec) -> ArchitectureSpec:
    return ArchitectureSpec(
        model_type=model_type,
        stacks=(StackSpec(blocks=blocks, dimensions=(HEADS, *channels)),),
        auto_class="AutoModelForImageClassification",
    )


VIT = _vision("vit", "vit.layers", CHANNELS)
DEIT = _vision("deit", "deit.layers", CHANNELS)
DINOV2 = _vision("dinov2", "dinov2.encoder.layer", _DINOV2_PLAIN, _DINOV2_GATED)

SPECS = (VIT, DEIT, DINOV2)
