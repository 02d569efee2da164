"""Quantized base layers: the only package that knows the storage of their weights.

A layer may have to be quantized again, after a refit or after a cut that its layout cannot make exactly. It then keeps
the weight that was quantized, in 16 or 32 bits and in CPU memory: its *source*. Later cuts and refits start from the
source, so quantization errors do not add up.
"""

from loraprune.layers.quantized.layers import (
    exact_weight,
    is_quantized,
    keep_,
    set_source_,
    set_weight_,
    shape_of,
    source_of,
    weight_rows,
)
from loraprune.layers.quantized.layout import UnsupportedQuantizationError
from loraprune.layers.quantized.models import (
    is_quantized_model,
    prepare_,
    quantized_layers,
    stored_bytes,
    unfit_for_cpu,
)

__all__ = [
    "UnsupportedQuantizationError",
    "exact_weight",
    "is_quantized",
    "is_quantized_model",
    "keep_",
    "prepare_",
    "quantized_layers",
    "set_source_",
    "set_weight_",
    "shape_of",
    "source_of",
    "stored_bytes",
    "unfit_for_cpu",
    "weight_rows",
]
