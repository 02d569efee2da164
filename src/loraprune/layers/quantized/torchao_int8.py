"""Int8 weight-only quantization of torchao: integers, and one scale per row."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from loraprune.layers.quantized.layout import Layout, UnsupportedQuantizationError

ACTIVATIONS = ("act_quant_kwargs", "act_quant_scale", "act_pre_scale")


class TorchaoInt8Layout(Layout):
    """A linear layer whose weight is an ``Int8Tensor``. Rows and columns can be cut exactly."""

    def check(self, weight: Any) -> None:
        """Check that a tensor has this layout.

        Raises:
            UnsupportedQuantizationError: it quantizes activations as well, or does not have one scale per row.
        """
        if any(getattr(weight, name, None) is not None for name in ACTIVATIONS):
            raise UnsupportedQuantizationError(
                "The model also quantizes activations (torchao's dynamic or static int8), which silently makes "
                "gradients wrong. Quantize only the weights: Int8WeightOnlyConfig() of torchao."
            )
        if weight.dim() != 2 or weight.scale.numel() != weight.shape[0]:
            raise UnsupportedQuantizationError(
                "torchao quantized the model without one scale per row. Use the default Int8WeightOnlyConfig()."
            )

    def dtype(self, layer: Any) -> torch.dtype:
        """Return the dtype of the weight before quantization."""
        dtype: torch.dtype = layer.weight.dtype
        return dtype

    def rows(self, layer: Any, rows: slice) -> torch.Tensor:
        """Return the numbers minus the zero point of their row, times its scale."""
        weight = layer.weight
        numbers = weight.qdata[rows].to(torch.float32)
        if weight.zero_point is not None:
            numbers -= weight.zero_point[rows].view(-1, 1)
        return numbers.mul_(weight.scale[rows].view(-1, 1).float())

    def keep_(self, layer: Any, dim: int, index: torch.Tensor) -> bool:
        """Keep rows or columns, always exactly."""
        weight = layer.weight
        index = index.to(weight.device)
        numbers = weight.qdata.index_select(dim, index).contiguous()

        def kept(values: torch.Tensor | None) -> torch.Tensor | None:
            return values[index].contiguous() if values is not None and dim == 0 else values

        tensor = type(weight)(
            numbers,
            kept(weight.scale),
            [1, numbers.shape[1]],
            weight.dtype,
            zero_point=kept(weight.zero_point),
            reduce_range=weight.reduce_range,
        )
        layer.weight = nn.Parameter(tensor, requires_grad=False)
        return True

    def quantize_(self, layer: Any, weight_OI: torch.Tensor) -> None:
        """Quantize as torchao does when a model is loaded."""
        from torchao.quantization.granularity import PerRow

        weight = layer.weight
        tensor = type(weight).from_hp(
            weight_OI.to(weight.device, weight.dtype).contiguous(), PerRow(), reduce_range=weight.reduce_range
        )
        layer.weight = nn.Parameter(tensor, requires_grad=False)

    def stored_bytes(self, layer: Any) -> int:
        """Return the bytes of numbers, scales and zero points."""
        weight = layer.weight
        parts = (weight.qdata, weight.scale, weight.zero_point)
        return sum(int(part.nbytes) for part in parts if part is not None)
