"""PST: scores of single weights that are learned together with LoRA, and the product through which they are learned.

The effective weight is ``(W + s·B·A) ⊙ M``. The score of a weight is ``|W + s·B·A| + α1·U·V + α2·(R + C)``: a part that
needs no data, and a learned part that is low rank (U, V) or shared by a row (R) or a column (C). M keeps the highest.

Source: Li et al. 2022 (arXiv 2205.11005).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F

from loraprune.importance.configs import Pst
from loraprune.sparsity.masked_product import Factors, sum_of_products
from loraprune.sparsity.masks import lowest

PstOptions = Pst
"""The old name."""


@dataclass
class LearntScores:
    """Learned values of one matrix: U ``(out, r)``, V ``(r, in)``, R ``(out, 1)``, C ``(1, in)``; in 32 bits.

    The learned part of the score starts at 0, because U, R and C are 0. V is random, so U receives gradients.
    """

    u: torch.Tensor
    v: torch.Tensor
    r: torch.Tensor
    c: torch.Tensor

    @classmethod
    def fresh(
        cls, rows: int, columns: int, rank: int, generator: torch.Generator, device: torch.device
    ) -> LearntScores:
        """Create untrained scores; the generator is one of the CPU."""
        v = torch.randn(rank, columns, generator=generator) / math.sqrt(rank)
        parts = (torch.zeros(rows, rank), v, torch.zeros(rows, 1), torch.zeros(1, columns))
        return cls(*(part.to(device).requires_grad_() for part in parts))

    @property
    def tensors(self) -> tuple[torch.Tensor, ...]:
        """U, V, R and C."""
        return self.u, self.v, self.r, self.c


@torch.no_grad()
def pst_score(weight_OI: torch.Tensor, factors: Sequence[Factors], learnt: LearntScores, options: Pst) -> torch.Tensor:
    """``|W + Σ s·B·A| + α1·U·V + α2·(R + C)``, shape ``(out, in)``, in 32 bits."""
    effective_OI = sum_of_products(factors).to(torch.float32).add_(weight_OI)
    score_OI = effective_OI.abs_().addmm_(learnt.u, learnt.v, alpha=options.low_rank_weight)
    score_OI.add_(learnt.r, alpha=options.structured_weight)
    return score_OI.add_(learnt.c, alpha=options.structured_weight)


def kept_highest(score_OI: torch.Tensor, ratio: float) -> torch.Tensor:
    """Mark the weights that stay: all but the lowest ``round(ratio · n)`` of the matrix; ties lose the first."""
    flat = score_OI.reshape(-1)
    return ~lowest(flat, round(ratio * flat.numel())).view_as(score_OI)


class _PstProduct(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight_OI: torch.Tensor,
        kept_OI: torch.Tensor | None,
        dtype: torch.dtype,
        weights: tuple[float, float],
        scaling: float,
        *learnt: torch.Tensor,
    ) -> torch.Tensor:
        a, b = learnt[:2]
        ctx.save_for_backward(x, *learnt)
        # Not saved tensors, because they are not activations, which hooks may move elsewhere.
        ctx.weight_OI, ctx.kept_OI = weight_OI, kept_OI
        ctx.dtype, ctx.weights, ctx.scaling = dtype, weights, scaling
        with torch.autocast(x.device.type, enabled=False):
            update_OI = _masked(sum_of_products([(a, b, scaling)]), kept_OI)
            if dtype.itemsize >= update_OI.dtype.itemsize:
                return F.linear(x.to(dtype), _masked(update_OI.add_(weight_OI), kept_OI).to(dtype))
            # In 16 bits the sum would lose small updates.
            base = F.linear(x.to(dtype), _masked(weight_OI.to(dtype, copy=True), kept_OI))
            return base.add_(F.linear(x.to(dtype), update_OI.to(dtype)))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_output: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, a, b, *scores = ctx.saved_tensors
        kept_OI, needed = ctx.kept_OI, ctx.needs_input_grad
        grad_x: torch.Tensor | None = None
        grads: list[torch.Tensor | None] = [None] * (2 + len(scores))
        with torch.autocast(x.device.type, enabled=False):
            effective_OI = sum_of_products([(a, b, ctx.scaling)]).add_(ctx.weight_OI)
            if needed[0]:
                masked_OI = _masked(effective_OI.clone(), kept_OI).to(ctx.dtype)
                grad_x = (grad_output @ masked_OI).to(x.dtype)
                del masked_OI
            if any(needed[6:]):
                rows_O, rows_I = grad_output.reshape(-1, grad_output.shape[-1]), x.reshape(-1, x.shape[-1])
                grad_OI = (rows_O.T @ rows_I.to(ctx.dtype)).to(a.dtype)
                if scores and any(needed[8:]):
                    grads[2:] = _straight_through(effective_OI.mul_(grad_OI).to(scores[0].dtype), scores, ctx.weights)
                _masked(grad_OI, kept_OI)
                grads[0] = (ctx.scaling * b).T @ grad_OI
                grads[1] = grad_OI @ (ctx.scaling * a).T
        return grad_x, None, None, None, None, None, *grads


def _masked(values_OI: torch.Tensor, kept_OI: torch.Tensor | None) -> torch.Tensor:
    """Zero the values of removed weights, in place."""
    return values_OI if kept_OI is None else values_OI.masked_fill_(~kept_OI, 0)


def _straight_through(
    grad_mask_OI: torch.Tensor, scores: Sequence[torch.Tensor], weights: tuple[float, float]
) -> list[torch.Tensor | None]:
    """Gradients of U, V, R and C from that of the mask, as if the mask were the score."""
    u, v, _, _ = scores
    low_rank, structured = weights
    return [
        low_rank * (grad_mask_OI @ v.T),
        low_rank * (u.T @ grad_mask_OI),
        structured * grad_mask_OI.sum(1, keepdim=True),
        structured * grad_mask_OI.sum(0, keepdim=True),
    ]


def pst_product(
    x: torch.Tensor,
    weight_OI: torch.Tensor,
    kept_OI: torch.Tensor | None,
    factors: Factors,
    learnt: LearntScores | None,
    options: Pst,
) -> torch.Tensor:
    """``x·((W + s·B·A) ⊙ M)ᵀ``, through which scores are learned.

    The gradient of the mask is ``dL/dW_eff ⊙ (W + s·B·A)``, including masked weights. It is passed straight through
    to U, V, R and C; the part of the score that needs no data gets none. A and B get theirs through the mask.
    No tensor of the weight's size is kept for the backward pass.

    Args:
        x: shape ``(..., in)``.
        weight_OI: W, frozen.
        kept_OI: M as booleans; None keeps everything.
        factors: A, B and the scaling.
        learnt: learned values; None once the mask is final.
        options: weights of the learned parts.
    """
    kind = x.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
    a, b, scaling = factors
    scores = () if learnt is None else learnt.tensors
    weights = (options.low_rank_weight, options.structured_weight)
    result: torch.Tensor = _PstProduct.apply(x, weight_OI.detach(), kept_OI, dtype, weights, scaling, a, b, *scores)  # type: ignore[no-untyped-call]
    return result
