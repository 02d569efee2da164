"""LoRA-guided importance: the gradient of a weight estimated from the gradients of its LoRA factors."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch

from loraprune.importance.moving_average import Scores
from loraprune.importance.reductions import over_experts, over_rows, reduced
from loraprune.layers.axes import is_matrix, is_stacked
from loraprune.layers.lora import effective_expert_weight, effective_weight, expert_factors, lora_factors
from loraprune.layers.unwrap import base_layer, base_model

if TYPE_CHECKING:
    from torch import nn

    from loraprune.layers.lora import LoraFactors
    from loraprune.structure.dimensions import Member, Structure
    from loraprune.structure.plan import Plan


def estimated_gradient(
    a: torch.Tensor, b: torch.Tensor, grad_a: torch.Tensor, grad_b: torch.Tensor, scaling: float
) -> torch.Tensor:
    """Estimate of a weight's gradient, ``s·(gB·A + B·gA − gB·gA)``: how much one step of LoRA would change the weight.

    Args:
        a: ``lora_A``, shape ``(r, in)``.
        b: ``lora_B``, shape ``(out, r)``; a subset of its rows is allowed, with the same rows of ``grad_b``.
        grad_a: gradient of ``a``.
        grad_b: gradient of ``b``.
        scaling: ``s = alpha / r``, by which LoRA multiplies ``B·A``.

    Source: LoRAPrune (arXiv 2305.18403), Eq. 10. The paper has no scaling.
    """
    # gB·(A − gA) + B·gA as one product. The scaling goes into a factor, which is far smaller than the product.
    left = torch.cat([grad_b, b], dim=1).float()
    right = torch.cat([a - grad_a, grad_a], dim=0).float()
    return (scaling * left) @ right


def _summed(estimates: Iterable[torch.Tensor]) -> torch.Tensor | None:
    """Sum of the estimates of several adapters, in place in the first; None without any."""
    total = None
    for estimate in estimates:
        total = estimate if total is None else total.add_(estimate)
    return total


def _importance(weight: torch.Tensor, gradient: torch.Tensor, form: str) -> torch.Tensor:
    """Importance of weights; both arguments have the same shape, and the first is modified in place."""
    importance = weight.mul_(gradient)
    return importance.square_() if form == "squared" else importance.abs_()


def _block_importance(module: nn.Module, factors: list[LoraFactors], rows: slice, form: str) -> torch.Tensor:
    """Importance of the weights in some rows of a layer, shape ``(rows, in)``."""
    gradient = _summed(
        estimated_gradient(f.a, f.b[rows], f.a.grad, f.b.grad[rows], f.scaling)
        for f in factors
        if f.a.grad is not None and f.b.grad is not None
    )
    assert gradient is not None
    return _importance(effective_weight(module, rows), gradient, form)


def _expert_importance(module: nn.Module, parameter: str, expert: int, form: str) -> torch.Tensor:
    """Importance of the weights of one of several stacked experts, shape ``(out, in)``."""
    weight = effective_expert_weight(module, parameter, expert)
    gradient = _summed(
        estimated_gradient(f.a, f.b, f.grad_a, f.grad_b, f.scaling)
        for f in expert_factors(module, parameter, expert)
        if f.grad_a is not None and f.grad_b is not None
    )
    return _importance(weight, torch.zeros_like(weight) if gradient is None else gradient, form)


def _per_group(module: nn.Module, member: Member, num_groups: int, form: str) -> torch.Tensor | None:
    """Sum of the importance of one layer's weights in each group; None without gradients."""
    if is_stacked(base_layer(module), member.parameter):
        if not any(f.grad_a is not None for f in expert_factors(module, member.parameter, 0)):
            return None
        return over_experts(
            module,
            member,
            num_groups,
            lambda expert: _expert_importance(module, member.parameter, expert, form),
        )
    factors = [f for f in lora_factors(module) if f.a.grad is not None and f.b.grad is not None]
    if not factors:
        return None
    return over_rows(module, member, num_groups, lambda rows: _block_importance(module, factors, rows, form))


@torch.no_grad()
def layer_importance(module: nn.Module, member: Member, num_groups: int, form: str) -> torch.Tensor | None:
    """Importance of the groups on one side of a layer, shape ``(num_groups,)``.

    Rows (or experts) are processed one block after the other, so no temporary is as large as the weight of a large
    layer. Returns None if LoRA does not adapt the layer or has no gradient yet.
    """
    scores = _per_group(module, member, num_groups, form)
    if scores is None or form != "absolute":
        return scores
    return scores / (torch.linalg.vector_norm(scores) + 1e-8)


def _is_adapted(module: nn.Module, parameter: str) -> bool:
    """Whether a parameter counts in the scores and LoRA adapts it."""
    if is_stacked(base_layer(module), parameter):
        return bool(expert_factors(module, parameter, 0))
    return is_matrix(module, parameter) and bool(lora_factors(module))


class LoraCriterion:
    """The criterion of the LoRAPrune paper (Eq. 4 and 10).

    The scores are read after the Trainer's gradient clipping, as in the public code.

    Args:
        form: ``squared`` is the paper's form; ``absolute`` is that of the authors' code, which takes absolute values
            and divides each layer's scores by their L2 norm before it adds the layers of a group.
        reduction: how the scores of a group's layers are combined, see
            :func:`loraprune.importance.reductions.reduced`; the paper sums them.
    """

    comparable = True
    every_step = True

    def __init__(self, form: str = "squared", reduction: str = "sum") -> None:
        self.form = form
        self.reduction = reduction
        self._model: nn.Module | None = None
        self._structure: Structure | None = None

    def attach(self, model: nn.Module, structure: Structure) -> None:
        """Remember the model; gradients are read from its parameters.

        Raises:
            ValueError: LoRA adapts no layer of a dimension, so the dimension cannot be scored.
        """
        self._model, self._structure = base_model(model), structure
        for dimension in structure:
            layers = [(self._model.get_submodule(member.module), member) for member in dimension.all_members]
            if not any(_is_adapted(module, member.parameter) for module, member in layers):
                which = (
                    "the experts (target_parameters of peft's LoraConfig)"
                    if dimension.of_experts
                    else "q, k, v, o, gate, up and down projections (--lora-target-modules)"
                )
                raise ValueError(
                    f"The criterion 'lora' needs LoRA on at least one layer of every group, but {dimension.name} has "
                    f"none. Adapt {which}, or use the criterion 'fisher'."
                )

    def scores(self, plan: Plan) -> Scores | None:
        """Return the layers' importance for each group; None before the first backward pass."""
        assert self._model is not None
        assert self._structure is not None
        scores: Scores = {}
        for dimension in self._structure:
            modules = [(self._model.get_submodule(member.module), member) for member in dimension.all_members]
            parts = [
                layer_importance(module, member, plan.count(dimension.name), self.form)
                for module, member in modules
                if _is_adapted(module, member.parameter)
            ]
            found = [part for part in parts if part is not None]
            if not found:
                return None
            scores[dimension.name] = reduced(found, self.reduction)
        return scores

    def detach(self) -> None:
        """Forget the model."""
        self._model = self._structure = None
