"""LoRA factors of a layer, and its effective weight."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from loraprune.layers.axes import base_weight
from loraprune.layers.unwrap import adapter_of, base_layer, base_model


@dataclass(frozen=True)
class LoraFactors:
    """The factors of one active adapter on one linear layer.

    Attributes:
        a: ``lora_A``, shape ``(r, in)``.
        b: ``lora_B``, shape ``(out, r)``.
        scaling: ``alpha / r`` (or the scaling of the variant).
    """

    a: nn.Parameter
    b: nn.Parameter
    scaling: float


def lora_factors(module: Any) -> list[LoraFactors]:
    """Return the factors of the active adapters of a layer; empty if LoRA does not adapt it."""
    if not hasattr(module, "lora_A"):
        return []
    return [
        LoraFactors(module.lora_A[name].weight, module.lora_B[name].weight, float(module.scaling[name]))
        for name in module.active_adapters
        if name in module.lora_A
    ]


def has_variant(module: Any) -> bool:
    """Whether a layer's adapter is a variant (such as DoRA) whose weight is not ``W + s·B·A``."""
    return bool(getattr(module, "lora_variant", None))


def check_tied_adapters(model: Any) -> None:
    """Check that no adapter is on only one of two tied layers: an embedding and a head that share a weight.

    Raises:
        ValueError: one is. Merged and saved, the two weights would be one again, which changes the model.
    """
    base = base_model(model)
    tied = bool(getattr(base.config, "tie_word_embeddings", False))
    if not tied or any(getattr(config, "ensure_weight_tying", False) for config in _configs(model)):
        return
    for module in (base.get_input_embeddings(), base.get_output_embeddings()):
        if getattr(module, "lora_embedding_A", None) or getattr(module, "lora_A", None):
            raise ValueError(
                "The embedding and the head of this model share one weight, but the adapter is on only one of them, "
                "which a merged checkpoint cannot hold. Leave embed_tokens and lm_head out of LoRA's target modules."
            )


def _configs(model: Any) -> list[Any]:
    """Configurations of a model's adapters; empty without any."""
    return list(getattr(model, "peft_config", {}).values())


def lora_delta(module: Any, rows: slice = slice(None)) -> torch.Tensor | None:
    """Return ``Σ s·B·A`` over the active adapters in 32 bits, for some rows of the layer; None without an adapter."""
    parts = [f.scaling * (f.b[rows].float() @ f.a.float()) for f in lora_factors(module)]
    return torch.stack(parts).sum(0) if len(parts) > 1 else (parts[0] if parts else None)


@torch.no_grad()
def effective_weight(module: nn.Module, rows: slice = slice(None)) -> torch.Tensor:
    """Return ``W + s·B·A`` in 32 bits, shape ``(out, in)``, for some rows of the layer, as a new tensor."""
    weight = base_weight(base_layer(module), rows)
    delta = lora_delta(module, rows)
    return weight if delta is None else weight.add_(delta)


def row_blocks(rows: int, columns: int, elements: int = 1 << 22) -> list[slice]:
    """Split the rows of a matrix into blocks of about ``elements`` entries, which keeps temporaries small."""
    step = max(1, elements // max(columns, 1))
    return [slice(start, min(start + step, rows)) for start in range(0, rows, step)]


# LoRA on stacked experts: the factors of one expert, and its effective weight.


@dataclass(frozen=True)
class ExpertFactors:
    """The factors of one active adapter on one expert's matrix, with their gradients; all are views.

    Attributes:
        a: shape ``(r, in)``.
        b: shape ``(out, r)``.
        grad_a: gradient of ``a``; None before the first backward pass.
        grad_b: gradient of ``b``.
        scaling: ``alpha / r`` (or the scaling of the variant).
    """

    a: torch.Tensor
    b: torch.Tensor
    grad_a: torch.Tensor | None
    grad_b: torch.Tensor | None
    scaling: float


def num_experts(module: nn.Module, parameter: str) -> int:
    """Return the number of experts in a stack."""
    return int(getattr(base_layer(module), parameter).shape[0])


def expert_factors(module: nn.Module, parameter: str, expert: int) -> list[ExpertFactors]:
    """Return the factors of the active adapters on one expert; empty if LoRA does not adapt the parameter.

    peft stores A of all experts as ``(experts · r, in)`` and B as ``(out, r · experts)``, with the expert as the
    fastest index.
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
    """Return ``Σ s·B·A`` over an expert's active adapters in 32 bits, shape ``(out, in)``; None without an adapter."""
    parts = [f.scaling * (f.b.float() @ f.a.float()) for f in expert_factors(module, parameter, expert)]
    return torch.stack(parts).sum(0) if parts else None


def expert_weight_oi(module: nn.Module, parameter: str, expert: int) -> torch.Tensor:
    """Return the base weight of one expert as (out, in), a view in either storage layout."""
    layer: Any = base_layer(module)
    weight: torch.Tensor = getattr(layer, parameter)[expert]
    return weight.T if getattr(layer, "is_transposed", False) else weight


@torch.no_grad()
def effective_expert_weight(module: nn.Module, parameter: str, expert: int) -> torch.Tensor:
    """Return ``W + s·B·A`` of one expert in 32 bits, shape ``(out, in)``, as a new tensor."""
    weight = expert_weight_oi(module, parameter, expert).detach().to(torch.float32, copy=True)
    delta = expert_delta(module, parameter, expert)
    return weight if delta is None else weight.add_(delta)
