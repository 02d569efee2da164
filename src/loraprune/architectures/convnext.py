"""ConvNeXt: the MLP in each block, whose width differs from stage to stage."""

from __future__ import annotations

from loraprune.architectures.spec import ArchitectureSpec, DimensionSpec, MemberSpec, StackSpec

# Pointwise convolutions that are written as linear layers, with the channels last. The width is always four times the
# stage's own, so that no config can say another one.
CHANNELS = DimensionSpec(
    kind="channels",
    members=(MemberSpec(module="pwconv1", axis="output", segments=(("channel",),)),),
    consumer=MemberSpec(module="pwconv2", axis="input", segments=(("channel",),)),
    fine=True,
)

CONVNEXT = ArchitectureSpec(
    model_type="convnext",
    stacks=(StackSpec(blocks="convnext.encoder.stages.*.layers", dimensions=(CHANNELS,)),),
    auto_class="AutoModelForImageClassification",
)

SPECS = (CONVNEXT,)
