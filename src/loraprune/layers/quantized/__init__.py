"""Quantized base layers: the one place that knows how they store their weights.

A layer whose weight had to be quantized anew (after a refit, or a cut that its layout cannot make exactly) keeps what
was quantized, in 16 or 32 bits and in CPU memory: its *source*. Later cuts and refits start from there, so that the
error of quantization is made once and does not add up.
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
