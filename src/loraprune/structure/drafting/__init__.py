"""What layers a model of an unknown family has, and a start for its description."""

from loraprune.structure.drafting.drafting import draft
from loraprune.structure.drafting.outline import BlockKind, Layer, Stack, outline

__all__ = ["BlockKind", "Layer", "Stack", "draft", "outline"]
