"""Stand-ins on the meta device for the quantized linear layers of bitsandbytes and torchao."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from loraprune.layers.axes import is_transposed

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_BLOCK = 64
"""Number of 4-bit weights of bitsandbytes per scale; 256 scales share one scale in turn."""


class QuantizedShape(nn.Linear):
    """A linear layer with the memory of a quantized one, at rest and in a training step.

    Its weight has the layer's shape and one byte; the stored tensors are held beside it.

    Args:
        rows: outputs.
        columns: inputs.
        bias: bias of the layer, or None.
        quantization: ``bnb-8bit``, ``bnb-4bit`` or ``torchao-int8``.
        dtype: dtype of the dequantized weight.
        device: simulated device, ``cuda`` or ``cpu``.
    """

    def __init__(
        self,
        rows: int,
        columns: int,
        bias: nn.Parameter | None,
        quantization: str,
        dtype: torch.dtype,
        device: str,
    ) -> None:
        super().__init__(1, 1, bias=False, device="meta")
        self.in_features, self.out_features = columns, rows
        number = torch.empty(1, dtype=torch.uint8, device="meta")
        self.weight = nn.Parameter(number.expand(rows, columns), requires_grad=False)
        self.bias = bias  # type: ignore[assignment]
        self.quantization = quantization
        self.computes_in = dtype
        self.stands_for = device
        self.stored = [
            torch.empty(size, dtype=kind, device="meta") for size, kind in stored(rows, columns, quantization)
        ]

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """The product, with the tensors it saves for the backward pass."""
        if self.quantization == "torchao-int8":
            # Its dequantized weight is an ordinary tensor, which autograd saves for the backward pass.
            return torch.nn.functional.linear(inputs, self.dequantized(), self.bias)
        product: Any = _Product
        outputs: torch.Tensor = product.apply(inputs, self)
        if self.quantization == "bnb-4bit":
            outputs = outputs.clone()  # as in peft
        bias: Any = self.bias
        return outputs if bias is None else outputs + bias.to(outputs.dtype)

    def dequantized(self) -> torch.Tensor:
        """A new tensor of the weight's shape."""
        if self.quantization == "bnb-4bit":
            # The scales come first.
            scales = torch.empty(self.weight.numel() // _BLOCK, device="meta")
            del scales
        return torch.empty(self.weight.shape, dtype=self.computes_in, device="meta")


def stored(rows: int, columns: int, quantization: str) -> list[tuple[int, torch.dtype]]:
    """Stored tensors of a quantized weight: number of elements and dtype."""
    count = rows * columns
    if quantization == "bnb-4bit":
        scales = -(-count // _BLOCK)
        # Numbers; scales, their own scales; the values of both codes, and an offset.
        return [
            (-(-count // 2), torch.uint8), (scales, torch.uint8), (-(-scales // 256), torch.float32),
            (16 + 256 + 1, torch.float32),
        ]  # fmt: skip
    return [(count, torch.int8), (rows, torch.float32)]


class _Product(torch.autograd.Function):
    """``x Wᵀ`` with the temporary allocations of each kind of kernel."""

    @staticmethod
    def forward(ctx: Any, inputs: torch.Tensor, layer: QuantizedShape) -> torch.Tensor:
        ctx.layer = layer
        # bitsandbytes saves the input of LLM.int8 although it needs only its dtype; LoRA's A saves it anyway.
        ctx.inputs = inputs if layer.quantization == "bnb-8bit" else None
        ctx.dtype = inputs.dtype
        if layer.quantization == "bnb-8bit" and layer.stands_for == "cuda":
            # The input in 16 bits, the input in 8 bits, and sums in 32 bits.
            beside = [
                inputs.new_empty(inputs.shape, dtype=torch.float16),
                inputs.new_empty(inputs.shape, dtype=torch.int8),
                inputs.new_empty((*inputs.shape[:-1], layer.out_features), dtype=torch.int32),
            ]
            output = inputs @ inputs.new_empty(1).expand(layer.weight.shape).T
            del beside
            return output
        return inputs @ layer.dequantized().to(inputs.dtype).T

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        (gradient,) = gradients
        return gradient.to(ctx.dtype) @ ctx.layer.dequantized().to(ctx.dtype), None


def quantize_shapes_(model: PreTrainedModel, quantization: str, dtype: torch.dtype, device: str) -> int:
    """Replace the linear layers of a model on the meta device in place, as the libraries do when they load a model.

    Layers outside the base model (the head of a language model, a classifier) stay unchanged.

    Returns:
        Number of replaced layers.
    """
    base: Any = model.base_model
    found = [
        (name, layer)
        for name, layer in base.named_modules()
        if type(layer) is nn.Linear or (is_transposed(layer) and quantization != "torchao-int8")
    ]
    for name, layer in found:
        rows, columns = layer.weight.shape
        if is_transposed(layer):
            rows, columns = columns, rows
        parent, _, last = name.rpartition(".")
        stand_in = QuantizedShape(rows, columns, layer.bias, quantization, dtype, device)
        setattr(base.get_submodule(parent) if parent else base, last, stand_in)
    return len(found)
