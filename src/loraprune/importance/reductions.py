"""From the importance of each weight to one score per group: sums over rows and experts, reductions over layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch

from loraprune.layers.axes import matrix_shape
from loraprune.layers.lora import num_experts, row_blocks
from loraprune.layers.unwrap import base_layer
from loraprune.processes.sharding import whole_for_reading

if TYPE_CHECKING:
    from torch import nn

    from loraprune.structure.dimensions import Member


def over_rows(
    module: nn.Module, member: Member, num_groups: int, importance: Callable[[slice], torch.Tensor]
) -> torch.Tensor:
    """Sum the importance of a linear layer's weights in each group.

    Args:
        module: the layer.
        member: one of its sides.
        num_groups: number of groups along that side.
        importance: returns the importance of the weights in some rows of the layer, shape ``(rows, in)``.
        Shape ``(num_groups,)``.
    """
    layer = base_layer(module)
    rows, columns = matrix_shape(layer)
    per_row = torch.zeros(rows, device=layer.weight.device)
    per_column = torch.zeros(columns, device=layer.weight.device)
    with whole_for_reading(layer):
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
    """Sum the importance of the weights of stacked experts in each group.

    Args:
        module: the stacked experts.
        member: one of their sides.
        num_groups: number of groups over all experts: the channels of one expert after another, or the experts.
        importance: returns the importance of the weights of one expert, shape ``(out, in)``.

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


# Combining the scores of the layers of a group.


@torch.no_grad()
def reduced(parts_LG: Sequence[torch.Tensor], how: str = "sum") -> torch.Tensor:
    """Combine the scores of the coupled layers into one score per group.

    Args:
        parts_LG: scores of each layer, nonnegative, shape ``(groups,)`` each; the consumer comes last.
        how: ``sum``, ``mean`` or ``max``; ``prod``: the product, computed as the geometric mean, which ranks groups in
            the same order, keeps the unit of the scores and does not leave the range of 32 bits; ``first`` or
            ``last``: the score of that layer only.

    Returns:
        Shape ``(groups,)``.

    Source: LLM-Pruner (arXiv 2305.11627, section 3.2: sum, product, max, last only); ``mean`` and ``first`` complete
    the list.
    """
    if how == "first":
        return parts_LG[0]
    if how == "last":
        return parts_LG[-1]
    stacked_LG = torch.stack(list(parts_LG))
    if how == "sum":
        return stacked_LG.sum(0)
    if how == "mean":
        return stacked_LG.mean(0)
    if how == "max":
        return stacked_LG.amax(0)
    if how == "prod":
        return stacked_LG.log().mean(0).exp()
    raise ValueError(f"There is no reduction {how!r}.")
