"""Access to the inside of stacked experts, whose weights are in one tensor that hooks do not reach."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from loraprune.layers.unwrap import base_layer

HiddenTap = Callable[[torch.Tensor, int, torch.Tensor], torch.Tensor]
"""Sees the inputs of an expert's down projection, and may change them. Arguments: hidden activations ``(tokens of the
expert, channels)``, the expert, and the indices of its tokens among the flattened ones."""

StartTap = Callable[[int], HiddenTap]
"""Called once per forward pass with the number of flattened tokens; returns the tap for all experts of that pass."""


def routed(top_k_index: torch.Tensor, num_experts: int) -> Iterator[tuple[int, torch.Tensor, torch.Tensor]]:
    """Iterate over the experts that tokens are routed to.

    Args:
        top_k_index: experts of each token, shape ``(tokens, k)``.
        num_experts: number of experts; indices from this on mean no expert.

    Yields:
        The expert, its tokens, and for each token the column of ``top_k_index`` that contains the expert.
    """
    chosen = top_k_index.flatten()
    order = torch.argsort(chosen, stable=True)
    if chosen.is_meta:  # only the number of tokens is known: they are distributed evenly
        counts = [len(part) for part in chosen.tensor_split(num_experts)]
    else:
        counts = torch.bincount(chosen, minlength=num_experts).tolist()
    for expert, places in enumerate(order.split(counts)[:num_experts]):
        if len(places):
            yield expert, places // top_k_index.shape[1], places % top_k_index.shape[1]


def _project(layer: Any, inputs: torch.Tensor, parameter: str, expert: int, weight: torch.Tensor) -> torch.Tensor:
    """Linear layer of one expert."""
    bias = getattr(layer, f"{parameter}_bias")[expert].to(weight.dtype) if layer.has_bias else None
    return F.linear(inputs, weight, bias)


def _weights_oi(layer: Any, parameter: str) -> tuple[torch.Tensor, ...]:
    """Weight of every expert as (out, in).

    The parameter is read once. Under peft's wrapper, reading adds the adapter to all experts, so reading it for each
    expert would create a gradient as large as all experts each time.
    """
    weights = getattr(layer, parameter)
    return (weights.transpose(1, 2) if layer.is_transposed else weights).unbind(0)


def up_parameter(layer: Any) -> str:
    """Return the name of the parameter that produces the hidden activations."""
    return "gate_up_proj" if layer.has_gate else "up_proj"


def expert_hidden(layer: Any, inputs: torch.Tensor, expert: int, weight: torch.Tensor) -> torch.Tensor:
    """Return the inputs of an expert's down projection.

    Args:
        layer: the stacked experts, without peft's wrapper.
        inputs: hidden states of the expert's tokens, shape ``(tokens, hidden)``.
        expert: number of the expert.
        weight: its up projection (gate and up), shape ``(out, in)``.
    """
    projected = _project(layer, inputs, up_parameter(layer), expert, weight)
    return layer._apply_gate(projected) if layer.has_gate else layer.act_fn(projected)


class _TappedForward:
    """Replaces the forward pass of stacked experts: one expert at a time, with taps between its layers."""

    def __init__(self, layer: Any) -> None:
        self._layer = layer
        self.starts: list[StartTap] = []

    def __call__(
        self, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
    ) -> torch.Tensor:
        layer = self._layer
        taps = [start(hidden_states.shape[0]) for start in self.starts]
        ups = _weights_oi(layer, up_parameter(layer))
        downs = _weights_oi(layer, "down_proj")
        total = torch.zeros_like(hidden_states)
        for expert, tokens, columns in routed(top_k_index, len(ups)):
            hidden = expert_hidden(layer, hidden_states[tokens], expert, ups[expert])
            for tap in taps:
                hidden = tap(hidden, expert, tokens)
            output = _project(layer, hidden, "down_proj", expert, downs[expert])
            if layer.has_post_expert_norm:
                output = layer.post_expert_norm(output)
            weighted = output * top_k_weights[tokens, columns, None]
            total.index_add_(0, tokens, weighted.to(total.dtype))
        return total


class ExpertTap:
    """A tap on stacked experts, until it is removed.

    While a module has taps, its forward pass is a loop over the experts, which transformers calls ``eager``.

    Args:
        module: the stacked experts, or peft's wrappers around them.
        start: returns the tap of each forward pass.

    Raises:
        TypeError: the module does not have the layout of stacked experts in transformers.
    """

    def __init__(self, module: nn.Module, start: StartTap) -> None:
        layer: Any = base_layer(module)
        self._layer = layer
        self._start = start
        expected = ("has_gate", "has_bias", "is_transposed", "has_post_expert_norm", "down_proj")
        missing = [name for name in expected if not hasattr(layer, name)]
        if missing:
            raise TypeError(
                f"{type(layer).__name__} does not have the layout of stacked experts in transformers: it has no "
                f"{missing[0]!r}. Its experts cannot be accessed. Prune other kinds of groups."
            )
        tapped = layer.__dict__.get("forward")
        if not isinstance(tapped, _TappedForward):
            tapped = _TappedForward(layer)
            layer.forward = tapped
        tapped.starts.append(start)

    def remove(self) -> None:
        """Remove the tap; removing the last one restores the module's own forward pass."""
        tapped = self._layer.__dict__.get("forward")
        if isinstance(tapped, _TappedForward) and self._start in tapped.starts:
            tapped.starts.remove(self._start)
            if not tapped.starts:
                del self._layer.forward
