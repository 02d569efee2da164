"""Looking into stacked experts: one tensor holds the weights of all of them, so that no hook reaches what is inside."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from loraprune.layers.unwrap import base_layer

HiddenTap = Callable[[torch.Tensor, int, torch.Tensor], torch.Tensor]
"""Sees what enters an expert's down projection, and may change it: hidden activations ``(tokens of the expert,
channels)``, the expert, and which of the flattened tokens those are."""

StartTap = Callable[[int], HiddenTap]
"""Called once a forward pass with the number of flattened tokens; gives the tap for all experts of that pass."""


def routed(top_k_index: torch.Tensor, num_experts: int) -> Iterator[tuple[int, torch.Tensor, torch.Tensor]]:
    """Go through the experts that tokens are routed to.

    Args:
        top_k_index: experts of each token, shape ``(tokens, k)``.
        num_experts: larger indices mean no expert.

    Yields:
        The expert, its tokens, and the column of ``top_k_index`` in which each of these names it.
    """
    chosen = top_k_index.flatten()
    order = torch.argsort(chosen, stable=True)
    if chosen.is_meta:  # nothing is known of the tokens but their number: they are shared out evenly
        counts = [len(part) for part in chosen.tensor_split(num_experts)]
    else:
        counts = torch.bincount(chosen, minlength=num_experts).tolist()
    for expert, places in enumerate(order.split(counts)[:num_experts]):
        if len(places):
            yield expert, places // top_k_index.shape[1], places % top_k_index.shape[1]


def _project(layer: Any, inputs: torch.Tensor, parameter: str, expert: int, weight: torch.Tensor) -> torch.Tensor:
    """One expert's linear layer."""
    bias = getattr(layer, f"{parameter}_bias")[expert].to(weight.dtype) if layer.has_bias else None
    return F.linear(inputs, weight, bias)


def _weights_oi(layer: Any, parameter: str) -> tuple[torch.Tensor, ...]:
    """The weight of every expert as (out, in).

    The parameter is read once: under peft's wrapper that adds the adapter to all experts, and picking one after the
    other would make a gradient as large as all of them for each.
    """
    weights = getattr(layer, parameter)
    return (weights.transpose(1, 2) if layer.is_transposed else weights).unbind(0)


def up_parameter(layer: Any) -> str:
    """Name of the parameter that the hidden activations come from."""
    return "gate_up_proj" if layer.has_gate else "up_proj"


def expert_hidden(layer: Any, inputs: torch.Tensor, expert: int, weight: torch.Tensor) -> torch.Tensor:
    """What enters an expert's down projection.

    Args:
        layer: the stacked experts, without peft's wrapper.
        inputs: hidden states of the expert's tokens, shape ``(tokens, hidden)``.
        expert: which one.
        weight: its up projection (gate and up), shape ``(out, in)``.
    """
    projected = _project(layer, inputs, up_parameter(layer), expert, weight)
    return layer._apply_gate(projected) if layer.has_gate else layer.act_fn(projected)


class _TappedForward:
    """Stands in for the forward pass of stacked experts: one expert after the other, with taps between its layers."""

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

    While a module has taps, its forward pass is a loop over the experts, which is what transformers calls ``eager``.

    Args:
        module: the stacked experts, or peft's wrappers around them.
        start: gives the tap of each forward pass.

    Raises:
        TypeError: the module is not built as transformers builds stacked experts.
    """

    def __init__(self, module: nn.Module, start: StartTap) -> None:
        layer: Any = base_layer(module)
        self._layer = layer
        self._start = start
        expected = ("has_gate", "has_bias", "is_transposed", "has_post_expert_norm", "down_proj")
        missing = [name for name in expected if not hasattr(layer, name)]
        if missing:
            raise TypeError(
                f"{type(layer).__name__} is not built as transformers builds stacked experts: it has no "
                f"{missing[0]!r}. Its experts cannot be looked into; prune other kinds of groups."
            )
        tapped = layer.__dict__.get("forward")
        if not isinstance(tapped, _TappedForward):
            tapped = _TappedForward(layer)
            layer.forward = tapped
        tapped.starts.append(start)

    def remove(self) -> None:
        """Take the tap off; the last one gives the module its own forward pass back."""
        tapped = self._layer.__dict__.get("forward")
        if isinstance(tapped, _TappedForward) and self._start in tapped.starts:
            tapped.starts.remove(self._start)
            if not tapped.starts:
                del self._layer.forward
