"""Gradients of group gates, read off the backward pass at no stored activation of their own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from loraprune.wrapping import base_model

if TYPE_CHECKING:
    from loraprune.structure import Structure


def gate_gradients(inputs: torch.Tensor, gradients: torch.Tensor, segments: tuple[int, ...]) -> torch.Tensor:
    """Gradient of the loss with respect to a gate of value 1 on every group, one sequence at a time.

    For a gate ``c_g`` that multiplies the features of group g: ``∂L/∂c_g = Σ_tokens Σ_features (∂L/∂x · x)``.

    Args:
        inputs: features ``x``, shape ``(batch, tokens, features)``.
        gradients: ``∂L/∂x``, same shape.
        segments: features a group takes, per segment (see :class:`loraprune.structure.Member`).

    Returns:
        Shape ``(batch, groups)``, float32.

    Source: Michel et al. 2019 (arXiv 1905.10650, Eq. 3), for every sequence and without the absolute value.
    """
    # One sequence at a time: on a CPU the product is read back before it leaves the cache, elsewhere it stays small.
    features = torch.stack([(x * g.float()).sum(0) for x, g in zip(inputs, gradients, strict=True)]).float()
    batch, length = features.shape
    groups = length // sum(segments)
    total = features.new_zeros(batch, groups)
    offset = 0
    for size in segments:
        total += features[:, offset : offset + groups * size].view(batch, groups, size).sum(2)
        offset += groups * size
    return total


class GateSquares:
    """Running sum of squared gate gradients of one dimension, and the number of sequences in it."""

    def __init__(self, segments: tuple[int, ...]) -> None:
        self.segments = segments
        self.total: torch.Tensor | None = None
        self.sequences = 0

    def add(self, inputs: torch.Tensor, gradients: torch.Tensor) -> None:
        """Take in one micro-batch."""
        squares = gate_gradients(inputs, gradients, self.segments).square_().sum(0)
        self.total = squares if self.total is None else self.total.add_(squares)
        self.sequences += inputs.shape[0]

    def take(self) -> torch.Tensor | None:
        """Mean square over the sequences since the last call, shape ``(groups,)``; None when there were none."""
        total, sequences = self.total, self.sequences
        self.total, self.sequences = None, 0
        return None if total is None else total / sequences


class _Gate(torch.autograd.Function):
    """Identity whose backward reads the gradient that passes through it.

    What it saves for the backward is the consumer's input, which LoRA's A of that consumer saves anyway: the same
    tensor, so it costs no memory. ``anchor`` requires a gradient, so that the backward is called even where nothing
    before the consumer is trained.
    """

    @staticmethod
    def forward(ctx: Any, inputs: torch.Tensor, anchor: torch.Tensor, squares: GateSquares) -> torch.Tensor:
        ctx.save_for_backward(inputs)
        ctx.squares = squares
        return inputs.view_as(inputs)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (inputs,) = ctx.saved_tensors
        (gradients,) = grad_outputs
        ctx.squares.add(inputs, gradients)
        return gradients, None, None


class GateProbes:
    """Gates on every consumer of a model; they change nothing and listen to each backward pass.

    Right under gradient accumulation and checkpointing, because evidence is gathered in the backward pass alone,
    one sequence at a time: how sequences are grouped into micro-batches does not matter.
    """

    def __init__(self, model: nn.Module, structure: Structure) -> None:
        base = base_model(model)
        self._anchor = torch.zeros((), requires_grad=True)
        self._squares = {dimension.name: GateSquares(dimension.consumer.segments) for dimension in structure}
        self._consumers: dict[str, Any] = {
            dimension.name: base.get_submodule(dimension.consumer.module) for dimension in structure
        }
        self._casts = {
            name: bool(getattr(consumer, "cast_input_dtype_enabled", True))
            for name, consumer in self._consumers.items()
        }
        self._handles = [
            consumer.register_forward_pre_hook(self._hook(name)) for name, consumer in self._consumers.items()
        ]

    def _hook(self, name: str) -> Any:
        squares, casts = self._squares[name], self._casts[name]

        def gate(module: Any, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...] | None:
            inputs = args[0]
            # Under autocast peft would cast the input up to the adapter's 32 bits, and autocast at once down again,
            # into a copy that LoRA's A then keeps. Without that detour A keeps the same tensor as the gate.
            if hasattr(module, "lora_A"):
                module.cast_input_dtype_enabled = casts and not torch.is_autocast_enabled(inputs.device.type)
            if not torch.is_grad_enabled():
                return None
            return (_Gate.apply(inputs, self._anchor, squares), *args[1:])  # type: ignore[no-untyped-call]

        return gate

    def take(self) -> dict[str, torch.Tensor]:
        """Mean squares since the last call, for the dimensions that saw a backward pass."""
        taken = {name: squares.take() for name, squares in self._squares.items()}
        return {name: values for name, values in taken.items() if values is not None}

    def remove(self) -> None:
        """Take the gates off."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        for name, consumer in self._consumers.items():
            if hasattr(consumer, "lora_A"):
                consumer.cast_input_dtype_enabled = self._casts[name]
