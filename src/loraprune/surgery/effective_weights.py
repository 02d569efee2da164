"""Reads and sets whole weights of layers with an adapter, a quantized base or neither; adapters do not change."""

from __future__ import annotations

import torch
from torch import nn

from loraprune.layers.axes import weight_oi
from loraprune.layers.lora import effective_weight, lora_delta
from loraprune.layers.quantized import exact_weight, is_quantized, set_weight_, source_of
from loraprune.layers.unwrap import base_layer


@torch.no_grad()
def set_columns_(module: nn.Module, columns: torch.Tensor | None, weight: torch.Tensor) -> None:
    """Set columns of the base weight to make base plus adapter equal ``weight``; the adapter does not change.

    ``columns`` are their positions, or None if ``weight`` is the whole weight.
    """
    delta = lora_delta(module)
    layer = base_layer(module)
    base = exact_weight(layer) if is_quantized(layer) else weight_oi(layer).data
    if columns is None:
        base.copy_(weight if delta is None else weight - delta)
    else:
        base[:, columns] = (weight if delta is None else weight - delta[:, columns]).to(base.dtype)
    if is_quantized(layer):
        set_weight_(layer, base)


@torch.no_grad()
def weight_before(module: nn.Module) -> torch.Tensor:
    """Effective weight before a refit; for a quantized layer, the weight that was quantized, if it is kept."""
    layer = base_layer(module)
    if source_of(layer) is None:
        return effective_weight(module)
    delta = lora_delta(module)
    return exact_weight(layer) if delta is None else exact_weight(layer).add_(delta)
