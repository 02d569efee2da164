"""Interface of the layouts of quantized weights."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch


class UnsupportedQuantizationError(ValueError):
    """The quantization of a layer does not support pruning, or no longer does; the message says what to do."""


class Layout(ABC):
    """Storage of the quantized weight in one type of layer."""

    def shape(self, layer: Any) -> tuple[int, int]:
        """Return outputs and inputs of a layer."""
        rows, columns = layer.weight.shape
        return rows, columns

    @abstractmethod
    def dtype(self, layer: Any) -> torch.dtype:
        """Return the dtype that holds every weight to be quantized."""

    @abstractmethod
    def rows(self, layer: Any, rows: slice) -> torch.Tensor:
        """Return some rows of the dequantized weight, shape ``(rows, in)``, float32, as a new tensor."""

    @abstractmethod
    def keep_(self, layer: Any, dim: int, index: torch.Tensor) -> bool:
        """Keep some rows (0) or columns (1) without changing any value; return False if the layout cannot do that."""

    @abstractmethod
    def quantize_(self, layer: Any, weight_OI: torch.Tensor) -> None:
        """Quantize another weight into a layer."""

    @abstractmethod
    def stored_bytes(self, layer: Any) -> int:
        """Return the bytes of a layer in a file, without its bias."""

    def prepare_(self, layer: Any) -> None:  # noqa: B027 (most layouts have nothing to do)
        """Make forward passes leave the stored weight unchanged."""


def bounds(rows: slice, length: int) -> tuple[int, int]:
    """Return the first row and the one after the last."""
    start, stop, step = rows.indices(length)
    assert step == 1
    return start, stop
