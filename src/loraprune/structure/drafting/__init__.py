"""Layers of a model of an unknown family, and a draft of its description."""

from loraprune.structure.drafting.drafting import draft
from loraprune.structure.drafting.outline import BlockKind, Layer, Stack, outline

__all__ = ["BlockKind", "Layer", "Stack", "draft", "outline"]
