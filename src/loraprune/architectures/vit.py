"""Vision transformers: ViT, DeiT and DINOv2."""

from __future__ import annotations

from dataclasses import replace

from loraprune.architectures.parts import channels, heads
from loraprune.architectures.spec import ArchitectureSpec, DimensionSpec, StackSpec

# These configs have no field for the width of a head, but attention reads `head_dim` if a config has it. It is written
# at export, so a smaller number of heads does not change the width of each.
_HEADS = heads(
    "attention.q_proj",
    "attention.k_proj",
    "attention.v_proj",
    consumer="attention.o_proj",
    width="num_attention_heads",
)
_CHANNELS = channels("mlp.fc1", consumer="mlp.fc2", width="intermediate_size")


def _dinov2(dimension: DimensionSpec) -> DimensionSpec:
    """Channels of DINOv2, whose width is a whole multiple of the hidden size: no config can state another width.

    A model has either the plain FFN or the gated one.
    """
    return replace(dimension, default=False, optional=True)


def _vision(model_type: str, blocks: str, *channels: DimensionSpec) -> ArchitectureSpec:
    return ArchitectureSpec(
        model_type=model_type,
        stacks=(StackSpec(blocks=blocks, dimensions=(_HEADS, *channels)),),
        auto_class="AutoModelForImageClassification",
    )


VIT = _vision("vit", "vit.layers", _CHANNELS)
DEIT = _vision("deit", "deit.layers", _CHANNELS)
DINOV2 = _vision(
    "dinov2",
    "dinov2.encoder.layer",
    _dinov2(channels("mlp.fc1", consumer="mlp.fc2")),
    _dinov2(channels("mlp.gate_proj", "mlp.up_proj", consumer="mlp.down_proj")),
)

VIT_SPECS = (VIT, DEIT, DINOV2)
