"""Vanilla first-order importance, from the gradients of the base weights themselves."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from loraprune.adapters import effective_weight
from loraprune.averaging import Scores
from loraprune.axes import is_matrix, is_stacked, is_transposed
from loraprune.criteria.sums import over_experts, over_rows
from loraprune.expert_adapters import effective_expert_weight
from loraprune.wrapping import base_layer, base_model

if TYPE_CHECKING:
    from torch import nn

    from loraprune.plan import Plan
    from loraprune.structure import Member, Structure


def _weighted_members(model: nn.Module, members: tuple[Member, ...]) -> Iterator[tuple[nn.Module, Member]]:
    """Layers of a dimension whose weights count: linear ones and stacked experts; norms and biases do not."""
    for member in members:
        module = base_model(model).get_submodule(member.module)
        if is_matrix(module, member.parameter) or is_stacked(base_layer(module), member.parameter):
            yield module, member


def _base_parameter(module: nn.Module, member: Member) -> Any:
    """The base weight of a member as it is stored."""
    return getattr(base_layer(module), member.parameter)


@contextmanager
def base_gradients(model: nn.Module, structure: Structure) -> Iterator[None]:
    """Let backward passes leave gradients in exactly the weights that :func:`taylor_scores` reads.

    No other parameter gets one meanwhile: embeddings, head and adapters would only take memory. Afterwards every
    parameter requires gradients as it did before, and the weights have none. Gradients that the weights had before
    are dropped, lest they be added to.

    Raises:
        ValueError: a weight cannot have a gradient, since it is quantized.
    """
    weights = {}
    for dimension in structure:
        for module, member in _weighted_members(model, dimension.all_members):
            weight = _base_parameter(module, member)
            if not weight.is_floating_point():
                raise ValueError(
                    f"The score 'taylor' needs the gradient of {member.module}.{member.parameter}, which is quantized "
                    f"({weight.dtype}). Load the model in bfloat16, or use the score 'fisher'."
                )
            weights[id(weight)] = weight
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        for parameter, _ in flags:
            parameter.requires_grad_(id(parameter) in weights)
        for weight in weights.values():
            weight.grad = None
        yield
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
        for weight in weights.values():
            weight.grad = None


def _gradient(module: nn.Module, member: Member) -> torch.Tensor:
    """Gradient of a member's base weight as (out, in) or, of stacked experts, (experts, out, in): a view."""
    gradient: torch.Tensor | None = _base_parameter(module, member).grad
    if gradient is None:
        raise ValueError(
            f"The base weight {member.module}.{member.parameter} has no gradient. Run the forward and backward passes "
            "inside base_gradients(model, structure), and read the scores before it ends."
        )
    layer = base_layer(module)
    stored_io = is_transposed(layer) if gradient.dim() == 2 else getattr(layer, "is_transposed", False)
    return gradient.mT if stored_io else gradient


@torch.no_grad()
def squared_taylor(module: nn.Module, member: Member, num_groups: int) -> torch.Tensor:
    """``Σ (g·w)²`` over the weights that one layer gives to each group, shape ``(num_groups,)``."""
    gradient = _gradient(module, member)
    if gradient.dim() == 3:
        return over_experts(
            module,
            member,
            num_groups,
            lambda expert: effective_expert_weight(module, member.parameter, expert).mul_(gradient[expert]).square_(),
        )
    return over_rows(
        module, member, num_groups, lambda rows: effective_weight(module, rows).mul_(gradient[rows]).square_()
    )


def taylor_scores(model: nn.Module, structure: Structure, plan: Plan) -> Scores:
    """``Σ (∂L/∂W · W)²`` over all weights of all layers of each group, from the gradients that are there now.

    ``W`` is the effective weight ``W + s·B·A``, and its gradient is that of the base weight, adapter or not.

    Args:
        model: after one or several backward passes inside :func:`base_gradients`.
        structure: of the model before any pruning.
        plan: what the model is at.

    Returns:
        One score a group, float32, by name of the dimension.

    Raises:
        ValueError: a weight has no gradient.

    Source: LoRAPrune (arXiv 2305.18403), its vanilla criterion, and LLM-Pruner (arXiv 2305.11627).
    """
    return {
        dimension.name: torch.stack(
            [
                squared_taylor(module, member, plan.count(dimension.name))
                for module, member in _weighted_members(model, dimension.all_members)
            ]
        ).sum(0)
        for dimension in structure
    }
