"""Inputs of the experts of one block on calibration data, and the hidden activations of each expert."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch

from loraprune.calibration.features import ALL_ROWS, FeatureStatistics, part_of
from loraprune.layers.experts import expert_hidden, up_parameter
from loraprune.layers.lora import effective_expert_weight
from loraprune.layers.unwrap import base_layer
from loraprune.processes.ranks import before_this

if TYPE_CHECKING:
    from torch import nn


class RoutedTokens:
    """Hidden states that enter stacked experts, with their routing.

    Args:
        calls: per batch, the hidden states ``(tokens, hidden)``, and the experts and weights of each token, both
            ``(tokens, k)``.
        experts: number of experts; needed only if ``shared``.
        shared: whether each process of a run has a part of the tokens. Statistics then cover all parts, and all
            processes have to request the same ones.
    """

    def __init__(
        self,
        calls: Sequence[tuple[torch.Tensor, torch.Tensor, torch.Tensor]],
        experts: int = 0,
        *,
        shared: bool = False,
    ) -> None:
        self._calls, self._shared = calls, shared
        # Number of tokens per expert in the processes before this one.
        self._before: list[int] = [0] * experts
        if shared:
            routed = torch.cat([top_k_index.flatten() for _, top_k_index, _ in calls])
            self._before = before_this(torch.bincount(routed, minlength=experts)[:experts]).tolist()

    def _of(self, expert: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield the hidden states of the tokens that are routed to an expert, with their routing weights."""
        for hidden, top_k_index, top_k_weights in self._calls:
            rows, columns = (top_k_index == expert).nonzero(as_tuple=True)
            # With shared tokens, yield empty ones too: other processes may have some, and sums need a shape.
            if len(rows) or self._shared:
                yield hidden[rows].float(), top_k_weights[rows, columns, None].float()

    def _inside(self, module: nn.Module, expert: int, *, weighted: bool) -> Iterator[torch.Tensor]:
        """Yield the inputs of an expert's down projection."""
        layer: Any = base_layer(module)
        weight = effective_expert_weight(module, up_parameter(layer), expert)
        for hidden, routing in self._of(expert):
            inside = expert_hidden(layer, hidden, expert, weight)
            yield inside * routing if weighted else inside

    @torch.no_grad()
    def features(self, module: nn.Module, parameter: str, expert: int, *, moment: bool) -> FeatureStatistics | None:
        """Return statistics of the inputs of one matrix of an expert; None if no token is routed to it.

        Args:
            module: the stacked experts, or peft's wrappers around them.
            parameter: name of the matrix.
            expert: number of the expert.
            moment: whether to collect the second moment as well.
        """
        down = parameter == "down_proj"
        inside = self._inside(module, expert, weighted=False) if down else (hidden for hidden, _ in self._of(expert))
        return self._gathered(inside, moment=moment)

    @torch.no_grad()
    def weighted_features(
        self, module: nn.Module, expert: int, *, moment: bool, rows: slice = ALL_ROWS
    ) -> FeatureStatistics | None:
        """Return statistics of ``w·h``, the weighted inputs of an expert's down projection; None without tokens.

        The routing weight ``w`` scales an expert's output, and therefore an error in it.

        Args:
            module: the stacked experts, or peft's wrappers around them.
            expert: number of the expert.
            moment: whether to collect the second moment as well, shape ``(channels, channels)``.
            rows: rows to use, of those that are routed to the expert.
        """
        first = self._before[expert] if self._shared else 0
        return self._gathered(self._inside(module, expert, weighted=True), moment=moment, rows=rows, first=first)

    def _gathered(
        self, inputs: Iterator[torch.Tensor], *, moment: bool, rows: slice = ALL_ROWS, first: int = 0
    ) -> FeatureStatistics | None:
        statistics, seen = FeatureStatistics(moment=moment), first
        for batch in inputs:
            statistics.add(batch[part_of(rows, seen)])
            seen += len(batch)
        if self._shared:
            statistics.over_processes_()
        return statistics if statistics.rows else None
