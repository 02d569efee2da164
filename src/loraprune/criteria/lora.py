"""LoRA-guided importance: the gradient of a weight estimated from the gradients of its LoRA factors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, get_args

import torch

from loraprune.adapters import effective_weight, lora_factors, row_blocks
from loraprune.averaging import Scores
from loraprune.wrapping import base_layer, base_model

if TYPE_CHECKING:
    from torch import nn

    from loraprune.adapters import LoraFactors
    from loraprune.plan import Plan
    from loraprune.structure import Member, Structure

LoraForm = Literal["squared", "absolute"]
LORA_FORMS: tuple[str, ...] = get_args(LoraForm)


def estimated_gradient(
    a: torch.Tensor, b: torch.Tensor, grad_a: torch.Tensor, grad_b: torch.Tensor, scaling: float
) -> torch.Tensor:
    """Estimate of a weight's gradient, ``s·(gB·A + B·gA − gB·gA)``: how much one step of LoRA would change it.

    Args:
        a: ``lora_A``, shape ``(r, in)``.
        b: ``lora_B``, shape ``(out, r)``; some rows of it are enough, with the same rows of ``grad_b``.
        grad_a: gradient of ``a``.
        grad_b: gradient of ``b``.
        scaling: ``s = alpha / r``, by which LoRA multiplies ``B·A``.

    Source: LoRAPrune (arXiv 2305.18403), Eq. 10. The paper has no scaling.
    """
    # gB·(A − gA) + B·gA as one product.
    left = torch.cat([grad_b, b], dim=1).float()
    right = torch.cat([a - grad_a, grad_a], dim=0).float()
    return scaling * (left @ right)


def _block_importance(module: nn.Module, factors: list[LoraFactors], rows: slice, form: str) -> torch.Tensor:
    """Importance of the weights in some rows of a layer, shape ``(rows, in)``."""
    weight = effective_weight(module, rows)
    gradient = torch.zeros_like(weight)
    for f in factors:
        assert f.a.grad is not None
        assert f.b.grad is not None
        gradient += estimated_gradient(f.a, f.b[rows], f.a.grad, f.b.grad[rows], f.scaling)
    importance = weight.mul_(gradient)
    return importance.square_() if form == "squared" else importance.abs_()


@torch.no_grad()
def layer_importance(module: nn.Module, member: Member, num_groups: int, form: str) -> torch.Tensor | None:
    """Importance that one layer gives to the groups of one of its sides, shape ``(num_groups,)``.

    Rows are taken in blocks, so that no temporary is as large as the weight of a large layer. None where LoRA does
    not adapt the layer or has no gradient yet.
    """
    factors = [f for f in lora_factors(module) if f.a.grad is not None and f.b.grad is not None]
    if not factors:
        return None
    rows, columns = base_layer(module).weight.shape
    per_row = torch.zeros(rows, device=factors[0].a.device)
    per_column = torch.zeros(columns, device=factors[0].a.device)
    for block in row_blocks(rows, columns):
        importance = _block_importance(module, factors, block, form)
        if member.axis == "output":
            per_row[block] = importance.sum(1)
        else:
            per_column += importance.sum(0)
    scores = member.group_sums(per_row if member.axis == "output" else per_column, num_groups)
    return scores / (torch.linalg.vector_norm(scores) + 1e-8) if form == "absolute" else scores


class LoraGuided:
    """The criterion of the LoRAPrune paper (Eq. 4 and 10).

    The scores are read after the Trainer's gradient clipping, as the public code reads them.

    Args:
        form: ``squared`` is the paper's; ``absolute`` that of the authors' code, which takes absolute values and
            divides each layer's scores by their L2 norm before it adds the layers of a group.
    """

    every_step = True

    def __init__(self, form: str = "squared") -> None:
        if form not in LORA_FORMS:
            raise ValueError(f"The form of the lora criterion is {form!r}; choose one of {', '.join(LORA_FORMS)}.")
        self.form = form
        self._model: nn.Module | None = None
        self._structure: Structure | None = None

    def attach(self, model: nn.Module, structure: Structure) -> None:
        """Remember the model; gradients are read from its parameters.

        Raises:
            ValueError: a dimension has no layer that LoRA adapts, so that nothing can be said of it.
        """
        self._model, self._structure = base_model(model), structure
        for dimension in structure:
            modules = [self._model.get_submodule(member.module) for member in dimension.all_members]
            if not any(lora_factors(module) for module in modules):
                raise ValueError(
                    f"The criterion 'lora' needs LoRA on at least one layer of every group, and {dimension.name} has "
                    "none. Adapt q, k, v, o, gate, up and down projections (--lora-target-modules), or use the "
                    "criterion 'fisher'."
                )

    def scores(self, plan: Plan) -> Scores | None:
        """Sum of the layers' importance for each group; None before the first backward pass."""
        assert self._model is not None
        assert self._structure is not None
        scores: Scores = {}
        for dimension in self._structure:
            num_groups = plan.count(dimension.name)
            for member in dimension.all_members:
                module = self._model.get_submodule(member.module)
                part = layer_importance(module, member, num_groups, self.form)
                if part is not None:
                    scores[dimension.name] = scores[dimension.name] + part if dimension.name in scores else part
        return scores if len(scores) == len(self._structure.dimensions) else None

    def detach(self) -> None:
        """Forget the model."""
        self._model = self._structure = None
