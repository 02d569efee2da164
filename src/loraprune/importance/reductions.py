"""Scores of groups from an importance of every weight, of which only a part is in memory at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from loraprune.layers.axes import matrix_shape
from loraprune.layers.expert_adapters import num_experts
from loraprune.layers.lora import row_blocks
from loraprune.layers.unwrap import base_layer

if TYPE_CHECKING:
    from torch import nn

    from loraprune.structure.dimensions import Member


def over_rows(
    module: nn.Module, member: Member, num_groups: int, importance: Callable[[slice], torch.Tensor]
) -> torch.Tensor:
    """Add up the importance of the weights that a linear layer gives to each group.

    Args:
        module: the layer.
        member: one of its sides.
        num_groups: groups along that side.
        importance: of the weights in some rows of the layer, shape ``(rows, in)``.

    Returns:
        Shape ``(num_groups,)``.
    """
    layer = base_layer(module)
    rows, columns = matrix_shape(layer)
    per_row = torch.zeros(rows, device=layer.weight.device)
    per_column = torch.zeros(columns, device=layer.weight.device)
    for block in row_blocks(rows, columns):
        of_weights = importance(block)
        if member.axis == "output":
            per_row[block] = of_weights.sum(1)
        else:
            per_column += of_weights.sum(0)
    return member.group_sums(per_row if member.axis == "output" else per_column, num_groups)


def over_experts(
    module: nn.Module, member: Member, num_groups: int, importance: Callable[[int], torch.Tensor]
) -> torch.Tensor:
    """Add up the importance of the weights that stacked experts give to each group.

    Args:
        module: the stacked experts.
        member: one of their sides.
        num_groups: groups over all experts: their channels one expert after the other, or the experts themselves.
        importance: of the weights of one expert, shape ``(out, in)``.

    Returns:
        Shape ``(num_groups,)``.
    """
    count = num_experts(module, member.parameter)
    scores = []
    for expert in range(count):
        of_weights = importance(expert)
        if member.axis == "experts":
            scores.append(of_weights.sum()[None])
        else:
            positions = of_weights.sum(1 if member.axis == "output" else 0)
            scores.append(member.group_sums(positions, num_groups // count))
    return torch.cat(scores)
