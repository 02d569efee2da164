"""Quantized models: their quantized layers, and whether they can be pruned."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

from loraprune.layers.quantized.four_bits import CPU_ROWS
from loraprune.layers.quantized.layers import is_quantized, layout_of, stored_bytes_of
from loraprune.layers.quantized.layout import UnsupportedQuantizationError
from loraprune.layers.unwrap import base_model

_METHODS = ("bitsandbytes", "torchao")


def quantized_layers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield names and modules of the quantized layers themselves, under the adapters around them."""
    for name, module in model.named_modules():
        if not hasattr(module, "get_base_layer") and is_quantized(module):
            yield name, module


def is_quantized_model(model: nn.Module) -> bool:
    """Whether any layer of a model is quantized."""
    return next(quantized_layers(model), None) is not None


def stored_bytes(model: nn.Module, itemsize: int) -> int:
    """Return the bytes of a model's weights in a file, with ``itemsize`` bytes per unquantized weight."""
    quantized = {id(layer.weight): layer for _, layer in quantized_layers(model)}
    plain = sum(value.numel() for value in model.parameters() if id(value) not in quantized)
    return plain * itemsize + sum(stored_bytes_of(layer) for layer in quantized.values())


def unfit_for_cpu(model: nn.Module) -> int:
    """Return the number of 4-bit layers that stock bitsandbytes (0.50) misreads or fails on, on some CPUs."""
    states = [getattr(layer.weight, "quant_state", None) for _, layer in quantized_layers(model)]
    shapes = [(*state.shape, state.blocksize) for state in states if state is not None]
    return sum(rows % CPU_ROWS != 0 or columns % block_size != 0 for rows, columns, block_size in shapes)


def prepare_(model: nn.Module) -> None:
    """Check that a quantized model can be pruned, and make forward passes leave its weights unchanged.

    Models that are not quantized are not changed.

    Raises:
        UnsupportedQuantizationError: its quantization is not supported, or a forward pass already damaged it.
    """
    base: Any = base_model(model)
    config = getattr(getattr(base, "config", None), "quantization_config", None)
    if getattr(base, "is_quantized", False) and config is not None:
        stated = config["quant_method"] if isinstance(config, dict) else config.quant_method
        method = str(getattr(stated, "value", stated))
        if method not in _METHODS:
            raise UnsupportedQuantizationError(
                f"The model is quantized by {method}, which cannot be pruned. Load the original with --load-in-8bit or "
                "--load-in-4bit, or with BitsAndBytesConfig in Python."
            )
    for _, layer in quantized_layers(base):
        layout = layout_of(layer)
        assert layout is not None
        layout.prepare_(layer)
