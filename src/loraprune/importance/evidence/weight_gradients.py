"""Gradients of frozen weights, one layer at a time, computed in the backward pass without autograd's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch

from loraprune.importance.evidence.expert_gates import SequenceCounts
from loraprune.layers.unwrap import base_model

if TYPE_CHECKING:
    from torch import nn

    from loraprune.structure.dimensions import Structure

_Heard = Callable[[torch.Tensor, torch.Tensor], None]
"""Receives the inputs of a layer, ``(batch, tokens, in)``, and the gradient of its output, ``(batch, tokens, out)``.

The gradient of the weight is the sum of their products over the tokens: ``gradᵀ · inputs``, shape ``(out, in)``.
"""


class _ListenBehind(torch.autograd.Function):
    """An identity on a layer's output that reports the layer's input with the output's gradient."""

    @staticmethod
    def forward(
        ctx: Any, output: torch.Tensor, inputs: torch.Tensor, anchor: torch.Tensor, heard: _Heard
    ) -> torch.Tensor:
        ctx.save_for_backward(inputs)
        ctx.heard = heard
        # Not a view of the output, because later code may change it in place.
        return output.detach()

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        (inputs,) = ctx.saved_tensors
        (gradients,) = grad_outputs
        ctx.heard(inputs, gradients)
        return gradients, None, None, None


class WeightGradients:
    """Listens to linear layers, to compute the gradient of each weight in the backward pass of its layer.

    No parameter has to require a gradient, so the Trainer's optimizer, its clipping and the layers' own backward are
    unchanged, and weights may be quantized. The backward pass keeps the layer's input, which LoRA's A keeps anyway.
    The gradients are those before clipping. Checkpointing does not change them, since all happens in the backward pass.

    Args:
        model: the model or the ``PeftModel`` around it.
        structure: its structure, which names the blocks.
        heard: receives input and gradient of each micro-batch, by name of the layer to listen to.
    """

    def __init__(self, model: nn.Module, structure: Structure, heard: Mapping[str, _Heard]) -> None:
        base = base_model(model)
        self._anchor = torch.zeros((), requires_grad=True)
        self._sequences = SequenceCounts(base, structure.blocks)
        self._handles = []
        for name, take in heard.items():
            block = next((block for block in structure.blocks if name.startswith(f"{block}.")), None)
            self._handles.append(base.get_submodule(name).register_forward_hook(self._hook(block, take)))

    def _hook(self, block: str | None, take: _Heard) -> Callable[..., torch.Tensor | None]:
        def behind(module: nn.Module, args: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor | None:
            if not torch.is_grad_enabled():
                return None
            inputs: torch.Tensor = args[0]
            batch = self._sequences.of(block) if inputs.dim() == 2 and block is not None else None

            def heard(inputs: torch.Tensor, gradients: torch.Tensor) -> None:
                take(_by_sequence(inputs, batch), _by_sequence(gradients, batch))

            anchor = self._anchor
            return _ListenBehind.apply(output, inputs, anchor, heard)  # type: ignore[no-untyped-call]

        return behind

    def remove(self) -> None:
        """Stop listening."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._sequences.remove()


def _by_sequence(features: torch.Tensor, batch: int | None) -> torch.Tensor:
    """Reshape features to ``(batch, tokens, features)``; one row with all sequences is split by sequence."""
    if features.dim() == 2:
        return features.unflatten(0, (batch or 1, -1))
    return features.flatten(1, -2)
