"""An identity in the forward pass that reports a tensor with its gradient in the backward pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

_Heard = Callable[[torch.Tensor, torch.Tensor], None]
"""Takes a tensor and the gradient of the loss with respect to it."""


class _Listen(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: torch.Tensor, anchor: torch.Tensor, heard: _Heard) -> torch.Tensor:
        ctx.save_for_backward(inputs)
        ctx.heard = heard
        return inputs.view_as(inputs)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (inputs,) = ctx.saved_tensors
        (gradients,) = grad_outputs
        ctx.heard(inputs, gradients)
        return gradients, None, None


def listen(inputs: torch.Tensor, anchor: torch.Tensor, heard: _Heard) -> torch.Tensor:
    """Return a tensor unchanged, and report it with its gradient in the backward pass.

    The backward pass saves the tensor itself. On the input of a layer with LoRA, whose A saves it anyway, that costs no
    memory.

    Args:
        inputs: tensor to return.
        anchor: any tensor that requires a gradient, so the backward pass arrives even if nothing before it is
            trained.
        heard: receives the tensor and its gradient.
    """
    return _Listen.apply(inputs, anchor, heard)  # type: ignore[no-untyped-call]
