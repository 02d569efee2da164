"""What a layout of a quantized weight can do."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch


class UnsupportedQuantizationError(ValueError):
    """A layer is quantized in a way that cannot be pruned, or no longer can; the message says what to do."""


class Layout(ABC):
    """How one kind of layer stores its quantized weight."""

    def shape(self, layer: Any) -> tuple[int, int]:
        """Outputs and inputs of a layer."""
        rows, columns = layer.weight.shape
        return rows, columns

    @abstractmethod
    def dtype(self, layer: Any) -> torch.dtype:
        """The dtype that holds everything that is quantized."""

    @abstractmethod
    def rows(self, layer: Any, rows: slice) -> torch.Tensor:
        """Some rows of the dequantized weight, shape ``(rows, in)``, float32: a new tensor."""

    @abstractmethod
    def keep_(self, layer: Any, dim: int, index: torch.Tensor) -> bool:
        """Keep some rows (0) or columns (1) without a change of any value; False where the layout cannot do that."""

    @abstractmethod
    def quantize_(self, layer: Any, weight_OI: torch.Tensor) -> None:
        """Quantize another weight into a layer."""

    @abstractmethod
    def stored_bytes(self, layer: Any) -> int:
        """Bytes that a layer takes in a file, without its bias."""

    def prepare_(self, layer: Any) -> None:  # noqa: B027 (most layouts have nothing to do)
        """Make sure that forward passes leave the stored weight as it is."""


def bounds(rows: slice, length: int) -> tuple[int, int]:
    """First row and the one behind the last."""
    start, stop, step = rows.indices(length)
    assert step == 1
    return start, stop
