"""Reading, cutting and writing one quantized layer of any layout."""

from __future__ import annotations

import sys
from typing import Any

import torch

from loraprune.layers.quantized.four_bits import FourBitLayout
from loraprune.layers.quantized.int8 import Int8Layout
from loraprune.layers.quantized.layout import Layout, UnsupportedQuantizationError
from loraprune.layers.quantized.torchao_int8 import TorchaoInt8Layout

_INT8, _FOUR_BITS, _TORCHAO = Int8Layout(), FourBitLayout(), TorchaoInt8Layout()
_SOURCE = "_loraprune_source"


def layout_of(layer: Any) -> Layout | None:
    """Return the layout of a layer without an adapter; None if it is not quantized.

    Raises:
        UnsupportedQuantizationError: its quantization is not supported.
    """
    weight = getattr(layer, "weight", None)
    if weight is None:
        return None
    # A quantized layer implies that its package is imported; other layers need neither package.
    bitsandbytes, torchao = sys.modules.get("bitsandbytes"), sys.modules.get("torchao.quantization")
    if bitsandbytes is not None:
        if isinstance(layer, bitsandbytes.nn.Linear8bitLt) and weight.dtype == torch.int8:
            return _INT8
        if isinstance(layer, bitsandbytes.nn.Linear4bit) and getattr(weight, "quant_state", None) is not None:
            return _FOUR_BITS
    if torchao is not None and isinstance(weight, sys.modules["torchao.utils"].TorchAOBaseTensor):
        if not isinstance(weight, getattr(torchao, "Int8Tensor", ())):
            raise UnsupportedQuantizationError(
                f"The model's weights are {type(weight).__name__} of torchao, which cannot be pruned. Quantize them "
                "with Int8WeightOnlyConfig(), or pass the original checkpoint and --quantization torchao-int8."
            )
        _TORCHAO.check(weight)
        return _TORCHAO
    return None


def is_quantized(layer: Any) -> bool:
    """Whether a layer without an adapter holds a quantized weight."""
    return layout_of(layer) is not None


def _layout(layer: Any) -> Layout:
    layout = layout_of(layer)
    assert layout is not None
    return layout


def shape_of(layer: Any) -> tuple[int, int]:
    """Return outputs and inputs of a quantized layer."""
    return _layout(layer).shape(layer)


def stored_bytes_of(layer: Any) -> int:
    """Return the bytes of a quantized layer in a file, without its bias."""
    return _layout(layer).stored_bytes(layer)


@torch.no_grad()
def weight_rows(layer: Any, rows: slice = slice(None)) -> torch.Tensor:
    """Return some rows of the dequantized weight, shape ``(rows, in)``, float32, as a new tensor."""
    return _layout(layer).rows(layer, rows)


def source_of(layer: Any) -> torch.Tensor | None:
    """Return the weight that was quantized, shape ``(out, in)``, in CPU memory; None if it is not kept."""
    source: torch.Tensor | None = getattr(layer, _SOURCE, None)
    return source


def set_source_(layer: Any, source_OI: torch.Tensor) -> None:
    """Make cuts and refits of a layer start from the weight that was quantized."""
    assert tuple(source_OI.shape) == shape_of(layer)
    setattr(layer, _SOURCE, source_OI.detach().cpu())


def exact_weight(layer: Any) -> torch.Tensor:
    """Return a layer's source, or else its dequantized weight, ``(out, in)``, float32, as a new tensor."""
    source = source_of(layer)
    if source is None:
        return weight_rows(layer)
    return source.to(layer.weight.device, torch.float32, copy=True)


@torch.no_grad()
def keep_(layer: Any, dim: int, index: torch.Tensor) -> None:
    """Keep some rows (0) or columns (1) of a quantized layer.

    Exact if the layout allows it. Otherwise, or if the layer has a source, the rest is quantized again.
    """
    layout, source = _layout(layer), source_of(layer)
    if source is None and layout.keep_(layer, dim, index):
        return
    if source is None:
        source = weight_rows(layer).to("cpu", layout.dtype(layer))
    kept = source.index_select(dim, index.cpu())
    setattr(layer, _SOURCE, kept)
    layout.quantize_(layer, kept)


@torch.no_grad()
def set_weight_(layer: Any, weight_OI: torch.Tensor) -> None:
    """Quantize another weight of the same shape into a layer, and keep it as the layer's source."""
    layout, source = _layout(layer), source_of(layer)
    assert tuple(weight_OI.shape) == layout.shape(layer)
    dtype = layout.dtype(layer) if source is None else source.dtype
    rounded = weight_OI.detach().to("cpu", dtype, copy=True)
    setattr(layer, _SOURCE, rounded)
    layout.quantize_(layer, rounded)
