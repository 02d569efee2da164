"""LLM.int8 of bitsandbytes: integers, and one scale per row."""

from __future__ import annotations

from typing import Any

import torch

from loraprune.layers.quantized.layout import Layout


class Int8Layout(Layout):
    """``Linear8bitLt``. Rows and columns can be cut exactly: removing columns does not change the scale of a row.

    A forward pass moves numbers and scales from the weight to the layer's state, so both places are checked.
    """

    def dtype(self, layer: Any) -> torch.dtype:
        """Return float16, because bitsandbytes rounds to it before it quantizes."""
        return torch.float16

    def rows(self, layer: Any, rows: slice) -> torch.Tensor:
        """Return the numbers times the scale of their row / 127."""
        numbers = layer.weight.data[rows].to(torch.float32)
        return numbers.mul_(self._scales(layer)[rows, None] / 127)

    def keep_(self, layer: Any, dim: int, index: torch.Tensor) -> bool:
        """Keep rows or columns, always exactly."""
        index = index.to(layer.weight.device)
        scales = self._scales(layer)
        self._store_(layer, layer.weight.data.index_select(dim, index), scales[index] if dim == 0 else scales)
        return True

    def quantize_(self, layer: Any, weight_OI: torch.Tensor) -> None:
        """Quantize as bitsandbytes does when a model is loaded."""
        from bitsandbytes.functional import int8_vectorwise_quant

        weight = weight_OI.to(layer.weight.device, torch.float16).contiguous()
        numbers, scales, _ = int8_vectorwise_quant(weight)
        self._store_(layer, numbers, scales)

    def stored_bytes(self, layer: Any) -> int:
        """Return the bytes of numbers and scales."""
        return int(layer.weight.data.nbytes + self._scales(layer).nbytes)

    def _scales(self, layer: Any) -> torch.Tensor:
        scales: torch.Tensor = layer.weight.SCB if layer.weight.SCB is not None else layer.state.SCB
        return scales

    def _store_(self, layer: Any, numbers: torch.Tensor, scales: torch.Tensor) -> None:
        numbers, moved = numbers.contiguous(), layer.weight.SCB is None
        layer.weight.data = numbers
        place, other = (layer.state, layer.weight) if moved else (layer.weight, layer.state)
        place.CB, place.SCB = numbers, scales.contiguous()
        other.CB = other.SCB = None
        layer.state.idx = None  # columns with outliers in the last forward pass
