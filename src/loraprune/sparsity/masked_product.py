"""Products with a low-rank update that is zero where a weight is, without keeping a tensor of the weight's size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional as F

Factors = tuple[torch.Tensor, torch.Tensor, float]
"""A of shape ``(r, in)``, B of shape ``(out, r)``, and the scaling of their product."""


def _update(weight_OI: torch.Tensor, factors: Sequence[Factors], add_weight: bool) -> torch.Tensor:
    """``Σ s·B·A ⊙ M``, plus the weight if requested, in the dtype of the factors."""
    update_OI = sum_of_products(factors).masked_fill_(weight_OI == 0, 0)
    return update_OI.add_(weight_OI) if add_weight else update_OI


def sum_of_products(factors: Sequence[Factors]) -> torch.Tensor:
    """``Σ s·B·A``, shape ``(out, in)``."""
    (a, b, scaling), *others = factors
    total_OI = (scaling * b) @ a
    for a, b, scaling in others:
        total_OI.addmm_(scaling * b, a)
    return total_OI


class _MaskedProduct(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight_OI: torch.Tensor,
        add_weight: bool,
        dtype: torch.dtype,
        scalings: tuple[float, ...],
        *factors: torch.Tensor,
    ) -> torch.Tensor:
        ctx.save_for_backward(x, *factors)
        # Not a saved tensor: it is a parameter, which hooks must not move off the device as an activation, and torch
        # counts adding and removing a parametrization as a change of it.
        ctx.weight_OI = weight_OI
        ctx.add_weight, ctx.dtype, ctx.scalings = add_weight, dtype, scalings
        with torch.autocast(x.device.type, enabled=False):
            triples = list(zip(factors[0::2], factors[1::2], scalings, strict=True))
            return F.linear(x.to(dtype), _update(weight_OI, triples, add_weight).to(dtype))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_output: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, *factors = ctx.saved_tensors
        triples = list(zip(factors[0::2], factors[1::2], ctx.scalings, strict=True))
        grad_x = None
        grads: list[torch.Tensor | None] = [None] * len(factors)
        with torch.autocast(x.device.type, enabled=False):
            if ctx.needs_input_grad[0]:
                weight_OI = _update(ctx.weight_OI, triples, ctx.add_weight).to(ctx.dtype)
                grad_x = (grad_output @ weight_OI).to(x.dtype)
                del weight_OI
            wanted = ctx.needs_input_grad[5:]
            if any(wanted):
                rows_O, rows_I = grad_output.reshape(-1, grad_output.shape[-1]), x.reshape(-1, x.shape[-1])
                grad_OI = rows_O.T @ rows_I.to(ctx.dtype)
                grad_OI = grad_OI.masked_fill_(ctx.weight_OI == 0, 0).to(factors[0].dtype)
                for i, (a, b, scaling) in enumerate(triples):
                    if wanted[2 * i]:
                        grads[2 * i] = (scaling * b).T @ grad_OI
                    if wanted[2 * i + 1]:
                        grads[2 * i + 1] = grad_OI @ (scaling * a).T
        return grad_x, None, None, None, None, *grads


def masked_product(
    x: torch.Tensor, weight_OI: torch.Tensor, factors: Sequence[Factors], *, add_weight: bool = False
) -> torch.Tensor:
    """``x·(Σ s·B·A ⊙ M)ᵀ`` or ``x·((W + Σ s·B·A) ⊙ M)ᵀ``, where M is 1 where W is not zero.

    The factors are multiplied in their own dtype; the product with ``x`` is computed in that of ``x`` or of autocast.
    Only ``x`` and the factors are kept for the backward pass, which returns no gradient for the weight.

    Args:
        x: shape ``(..., in)``.
        weight_OI: weight, which may be a view; gradients do not reach it.
        factors: factors of one or several adapters, all of one dtype.
        add_weight: whether the weight itself is part of the product.
    """
    kind = x.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
    tensors = [tensor for a, b, _ in factors for tensor in (a, b)]
    scalings = tuple(scaling for _, _, scaling in factors)
    result: torch.Tensor = _MaskedProduct.apply(x, weight_OI.detach(), add_weight, dtype, scalings, *tensors)  # type: ignore[no-untyped-call]
    return result


class _KeepZeros(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: torch.Tensor, pattern: torch.Tensor) -> torch.Tensor:
        ctx.pattern = pattern
        return values.masked_fill(pattern == 0, 0)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_output: torch.Tensor) -> tuple[torch.Tensor, None]:
        return grad_output.masked_fill(ctx.pattern == 0, 0), None


def keep_zeros(values: torch.Tensor, pattern: torch.Tensor) -> torch.Tensor:
    """Zero the values where the pattern is zero; the backward pass keeps only a reference to the pattern."""
    result: torch.Tensor = _KeepZeros.apply(values, pattern.detach())  # type: ignore[no-untyped-call]
    return result


def packed(mask: torch.Tensor) -> torch.Tensor:
    """Pack a boolean mask, eight values per byte."""
    bits = F.pad(mask.flatten().to(torch.uint8), (0, -mask.numel() % 8)).view(-1, 8)
    return torch.stack([column << i for i, column in enumerate(bits.unbind(1))]).sum(0, dtype=torch.uint8)


def unpacked(mask: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """Restore the booleans that :func:`packed` packed."""
    bits = torch.stack([(mask >> i) & 1 for i in range(8)], 1)
    return bits.flatten()[: shape.numel()].view(shape).bool()
