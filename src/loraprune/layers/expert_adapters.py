"""LoRA on stacked experts: the factors of one expert, and the weight they make together with its base."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from loraprune.layers.unwrap import adapter_of, base_layer


@dataclass(frozen=True)
class ExpertFactors:
    """The factors of one active adapter on one expert's matrix, with their gradients; all are views.

    Attributes:
        a: shape ``(r, in)``.
        b: shape ``(out, r)``.
        grad_a: gradient of ``a``; None before the first backward pass.
        grad_b: gradient of ``b``.
        scaling: ``alpha / r`` (or as the variant has it).
    """

    a: torch.Tensor
    b: torch.Tensor
    grad_a: torch.Tensor | None
    grad_b: torch.Tensor | None
    scaling: float


def num_experts(module: nn.Module, parameter: str) -> int:
    """Experts in a stack."""
    return int(getattr(base_layer(module), parameter).shape[0])


def expert_factors(module: nn.Module, parameter: str, expert: int) -> list[ExpertFactors]:
    """Factors of the active adapters on one expert; empty where LoRA does not adapt the parameter.

    peft keeps A of all experts as ``(experts · r, in)`` and B as ``(out, r · experts)``, the experts running fastest.
    """
    adapter = adapter_of(module, parameter)
    if adapter is None:
        return []
    count = num_experts(module, parameter)

    def of_a(value: torch.Tensor | None) -> torch.Tensor | None:
        return None if value is None else value.view(count, -1, value.shape[1])[expert]

    def of_b(value: torch.Tensor | None) -> torch.Tensor | None:
        return None if value is None else value.view(value.shape[0], -1, count)[..., expert]

    found = []
    for name in adapter.active_adapters:
        if name in adapter.lora_A:
            a, b = adapter.lora_A[name].weight, adapter.lora_B[name].weight
            view_a, view_b = of_a(a), of_b(b)
            assert view_a is not None
            assert view_b is not None
            found.append(ExpertFactors(view_a, view_b, of_a(a.grad), of_b(b.grad), float(adapter.scaling[name])))
    return found


def expert_delta(module: nn.Module, parameter: str, expert: int) -> torch.Tensor | None:
    """``Σ s·B·A`` over the active adapters of one expert in 32 bits, shape ``(out, in)``; None without adapter."""
    parts = [f.scaling * (f.b.float() @ f.a.float()) for f in expert_factors(module, parameter, expert)]
    return torch.stack(parts).sum(0) if parts else None


def expert_weight_oi(module: nn.Module, parameter: str, expert: int) -> torch.Tensor:
    """The base weight of one expert as (out, in): a view, whichever way it is stored."""
    layer: Any = base_layer(module)
    weight: torch.Tensor = getattr(layer, parameter)[expert]
    return weight.T if getattr(layer, "is_transposed", False) else weight


@torch.no_grad()
def effective_expert_weight(module: nn.Module, parameter: str, expert: int) -> torch.Tensor:
    """``W + s·B·A`` of one expert in 32 bits, shape ``(out, in)``. A new tensor."""
    weight = expert_weight_oi(module, parameter, expert).detach().to(torch.float32, copy=True)
    delta = expert_delta(module, parameter, expert)
    return weight if delta is None else weight.add_(delta)
