"""Merging an adapter into its base layer by layer, in 32 bits, including into a quantized base."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from loraprune.layers.axes import base_weight
from loraprune.layers.lora import lora_factors
from loraprune.layers.quantized import exact_weight, is_quantized, is_quantized_model, quantized_layers
from loraprune.layers.unwrap import base_layer, base_model
from loraprune.processes.sharding import apart, is_sharded, whole_weights

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from loraprune.layers.lora import LoraFactors

QUANTIZED_MARKS = ("is_quantized", "is_loaded_in_8bit", "is_loaded_in_4bit", "quantization_method", "hf_quantizer")


def cast_(model: nn.Module, dtype: torch.dtype) -> None:
    """Cast the parameters of a model, except quantized weights.

    Buffers are not cast, because rotary frequencies need their 32 bits.
    """
    if is_sharded(model):
        _cast_parts_(model, dtype)
        return
    quantized = {id(layer.weight) for _, layer in quantized_layers(model)}
    for parameter in model.parameters():
        if id(parameter) not in quantized:
            parameter.data = parameter.data.to(dtype)


def _cast_parts_(model: nn.Module, dtype: torch.dtype) -> None:
    """Same for a sharded model, one layer at a time."""
    if all(parameter.dtype == dtype for parameter in model.parameters()):
        return
    with apart(model):
        for module in model.modules():
            if any(True for _ in module.parameters(recurse=False)):
                with whole_weights(module):
                    for parameter in module.parameters(recurse=False):
                        parameter.data = parameter.data.to(dtype)


@torch.no_grad()
def merged(
    model: Any,
    dtype: torch.dtype | None,
    original: PreTrainedModel | None = None,
    refitted: Collection[str] = (),
) -> PreTrainedModel:
    """Return the plain model of a ``PeftModel``, modified in place: weight and update are added before rounding.

    Args:
        model: model with or without an adapter.
        dtype: dtype of the result; None keeps the model's own.
        original: for a quantized model, the model in 16 or 32 bits that was quantized, with the same cut. Its weights
            replace the quantized ones, so the result has no quantization error. None dequantizes.
        refitted: names of layers that keep their own base weights nevertheless.
    """
    if is_quantized_model(model):
        return _merged_plain(model, dtype, original, refitted)
    return _merged_in_place(model, dtype) if hasattr(model, "merge_and_unload") else base_model(model)


@torch.no_grad()
def _merged_in_place(model: Any, dtype: torch.dtype | None) -> PreTrainedModel:
    from peft.tuners.tuners_utils import BaseTunerLayer

    tuned: list[Any] = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    with apart(base_model(model)):
        for module in tuned:
            with whole_weights(module):
                _merge_layer_(module, dtype)
    plain: PreTrainedModel = model.unload()
    return plain


def _merge_layer_(module: Any, dtype: torch.dtype | None) -> None:
    layer = module.get_base_layer()
    stored = next(layer.parameters()).dtype
    cast_(module, torch.promote_types(stored, torch.float32))
    module.merge()
    cast_(layer, dtype or stored)


def _merged_plain(
    model: Any, dtype: torch.dtype | None, original: PreTrainedModel | None, refitted: Collection[str]
) -> PreTrainedModel:
    """Replace each quantized layer by a plain one. The result is in CPU memory, because it is larger."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    base = base_model(model)
    own = dtype or base.dtype
    factors: dict[str, list[LoraFactors]] = {}
    for name, module in list(base.named_modules()):
        if not isinstance(module, BaseTunerLayer):
            continue
        if is_quantized(base_layer(module)):
            factors[name] = lora_factors(module)
        else:
            _merge_layer_(module, dtype)
    plain: Any = model.unload() if hasattr(model, "unload") else base
    for name, layer in list(quantized_layers(plain)):
        if original is None or name in refitted:
            weight = exact_weight(layer).cpu()
        else:
            weight = base_weight(original.get_submodule(name)).cpu()
        for f in factors.get(name, ()):
            weight += (f.scaling * (f.b.float() @ f.a.float())).cpu()
        parent, _, last = name.rpartition(".")
        setattr(plain.get_submodule(parent), last, _plain_layer(layer, weight.to(own)))
    _unmark_(plain)
    placed: PreTrainedModel = plain.to("cpu")
    return placed


def _plain_layer(layer: Any, weight_OI: torch.Tensor) -> nn.Module:
    """Build a layer of the class that was quantized, with its bias."""
    from transformers.pytorch_utils import Conv1D

    rows, columns = weight_OI.shape
    is_conv = getattr(layer, "source_cls", None) is Conv1D
    with torch.device("meta"):
        plain: Any = Conv1D(rows, columns) if is_conv else nn.Linear(columns, rows, bias=layer.bias is not None)
    plain.weight = nn.Parameter(weight_OI.T.contiguous() if is_conv else weight_OI)
    if layer.bias is not None:
        plain.bias = nn.Parameter(layer.bias.data.to("cpu", weight_OI.dtype))
    return plain


def _unmark_(model: Any) -> None:
    """Remove the marks by which transformers treats a model as quantized."""
    for name in QUANTIZED_MARKS:
        model.__dict__.pop(name, None)
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
