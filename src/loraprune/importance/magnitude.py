"""Magnitude: the sum of the squared weights of each group."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from loraprune.importance.moving_average import Scores
from loraprune.importance.reductions import over_experts, over_rows, reduced
from loraprune.layers.axes import is_matrix, is_stacked
from loraprune.layers.lora import effective_expert_weight, effective_weight
from loraprune.layers.unwrap import base_layer, base_model

if TYPE_CHECKING:
    from torch import nn

    from loraprune.structure.dimensions import Member, Structure
    from loraprune.structure.plan import Plan


@torch.no_grad()
def squared_magnitude(module: nn.Module, member: Member, num_groups: int) -> torch.Tensor:
    """``Σ (W + s·B·A)²`` over one layer's weights in each group, shape ``(num_groups,)``."""
    if is_stacked(base_layer(module), member.parameter):
        return over_experts(
            module,
            member,
            num_groups,
            lambda expert: effective_expert_weight(module, member.parameter, expert).square_(),
        )
    return over_rows(module, member, num_groups, lambda rows: effective_weight(module, rows).square_())


class MagnitudeCriterion:
    """Squared magnitude of the effective weights of each group: the data-free baseline.

    Args:
        reduction: how the scores of a group's layers are combined, see
            :func:`loraprune.importance.reductions.reduced`.
    """

    comparable = False
    every_step = False

    def __init__(self, reduction: str = "sum") -> None:
        self.reduction = reduction
        self._model: nn.Module | None = None
        self._structure: Structure | None = None

    def attach(self, model: nn.Module, structure: Structure) -> None:
        """Remember the model."""
        self._model, self._structure = base_model(model), structure

    def scores(self, plan: Plan) -> Scores | None:
        """Score the current weights."""
        assert self._model is not None
        assert self._structure is not None
        scores: Scores = {}
        for dimension in self._structure:
            modules = [(self._model.get_submodule(member.module), member) for member in dimension.all_members]
            parts = [
                squared_magnitude(module, member, plan.count(dimension.name))
                for module, member in modules
                if is_matrix(module, member.parameter) or is_stacked(base_layer(module), member.parameter)
            ]
            scores[dimension.name] = reduced(parts, self.reduction)
        return scores

    def detach(self) -> None:
        """Forget the model."""
        self._model = self._structure = None
