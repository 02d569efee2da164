"""Scores of groups inside stacked experts, from an importance of every weight of one expert at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from loraprune.expert_adapters import num_experts

if TYPE_CHECKING:
    from torch import nn

    from loraprune.dimensions import Member


def over_experts(
    module: nn.Module, member: Member, num_groups: int, importance: Callable[[int], torch.Tensor]
) -> torch.Tensor:
    """Add up the importance of the weights of each group.

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
