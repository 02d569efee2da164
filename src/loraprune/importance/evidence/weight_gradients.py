"""Gradients of frozen weights, one layer at a time, read off the backward pass without asking autograd for them."""

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
"""Takes what entered a layer, shape ``(batch, tokens, in)``, and the gradient of its output, ``(batch, tokens, out)``.

The gradient of the weight is the sum of their products over the tokens: ``gradᵀ · inputs``, shape ``(out, in)``.
"""


class _ListenBehind(torch.autograd.Function):
    """An identity on a layer's output that hands over the layer's input with the output's gradient."""

    @staticmethod
    def forward(
        ctx: Any, output: torch.Tensor, inputs: torch.Tensor, anchor: torch.Tensor, heard: _Heard
    ) -> torch.Tensor:
        ctx.save_for_backward(inputs)
        ctx.heard = heard
        # No view of the output: what comes after may change it in place.
        return output.detach()

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        (inputs,) = ctx.saved_tensors
        (gradients,) = grad_outputs
        ctx.heard(inputs, gradients)
        return gradients, None, None, None


class WeightGradients:
    """Listens to linear layers, so that the gradient of each weight can be computed where its layer's backward pass is.

    No parameter is asked for a gradient: the Trainer's optimizer, its clipping and the layers' own backward stay as
    they are, and a quantized weight is the same as any other. What is kept for the backward pass is the layer's input,
    which LoRA's A keeps anyway. The gradients are those before clipping. Right under checkpointing, since all happens
    in the backward pass.

    Args:
        model: the model or the ``PeftModel`` around it.
        structure: its description: which blocks it has.
        heard: for each layer to listen to, by its name, what takes input and gradient of each micro-batch.
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
        """Stop to listen."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._sequences.remove()


def _by_sequence(features: torch.Tensor, batch: int | None) -> torch.Tensor:
    """Features as ``(batch, tokens, features)``; rows of all sequences at once are told apart."""
    if features.dim() == 2:
        return features.unflatten(0, (batch or 1, -1))
    return features.flatten(1, -2)
