"""What layers a model of an unknown family has, and a start for its description."""

from loraprune.outlining.drafting import draft
from loraprune.outlining.outline import BlockKind, Layer, Stack, outline

__all__ = ["BlockKind", "Layer", "Stack", "draft", "outline"]
