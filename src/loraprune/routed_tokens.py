"""What the experts of one block are called with on calibration data, and what that makes of each expert's inside."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from loraprune.expert_adapters import effective_expert_weight
from loraprune.experts import expert_hidden, up_parameter
from loraprune.wrapping import base_layer

if TYPE_CHECKING:
    from torch import nn


class RoutedTokens:
    """Hidden states that enter stacked experts, with their routing.

    Args:
        calls: for each batch the hidden states ``(tokens, hidden)``, and for each token its experts and their weights,
            both ``(tokens, k)``.
    """

    def __init__(self, calls: Sequence[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]) -> None:
        self._calls = calls

    @torch.no_grad()
    def second_moment(self, module: nn.Module, expert: int) -> torch.Tensor | None:
        """``Σ w²·h·hᵀ / tokens`` of what enters one expert's down projection, float32, shape ``(channels, channels)``.

        An expert's output counts as much as its routing weight ``w`` says, and so does an error in it. None where no
        token is routed to the expert.

        Args:
            module: the stacked experts, or peft's wrappers around them.
            expert: which one.
        """
        layer: Any = base_layer(module)
        weight = effective_expert_weight(module, up_parameter(layer), expert)
        total = weight.new_zeros(())
        tokens = 0
        for hidden, top_k_index, top_k_weights in self._calls:
            rows, columns = (top_k_index == expert).nonzero(as_tuple=True)
            if len(rows):
                inside = expert_hidden(layer, hidden[rows].float(), expert, weight)
                inside = inside * top_k_weights[rows, columns, None].float()
                total = total + inside.T @ inside
                tokens += len(rows)
        return total.div_(tokens) if tokens else None
