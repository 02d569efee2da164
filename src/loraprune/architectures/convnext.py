"""ConvNeXt: the MLP in each block, whose width differs from stage to stage."""

from __future__ import annotations

from loraprune.architectures.parts import channels
from loraprune.architectures.spec import ArchitectureSpec, StackSpec

# Pointwise convolutions, implemented as linear layers with the channels last. The width is always four times that of
# the stage, so no config can state another one.
_CHANNELS = channels("pwconv1", consumer="pwconv2")

CONVNEXT = ArchitectureSpec(
    model_type="convnext",
    stacks=(StackSpec(blocks="convnext.encoder.stages.*.layers", dimensions=(_CHANNELS,)),),
    auto_class="AutoModelForImageClassification",
)

CONVNEXT_SPECS = (CONVNEXT,)
