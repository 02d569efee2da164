"""How a checkpoint can be quantized while it is loaded: names of ours, and what transformers calls them."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import torch

QUANTIZATIONS = {"bnb-8bit": "bitsandbytes", "bnb-4bit": "bitsandbytes", "torchao-int8": "torchao"}
"""Names, and the package that each one needs."""


def check_quantization(name: str | None) -> None:
    """Make sure that a quantization exists and that its package is there.

    Raises:
        ValueError: it does not, or is not.
    """
    if name is None:
        return
    if name not in QUANTIZATIONS:
        raise ValueError(f"quantization is {name!r}; choose one of {', '.join(QUANTIZATIONS)}.")
    package = QUANTIZATIONS[name]
    if find_spec(package) is None:
        raise ValueError(
            f'The quantization {name!r} needs {package}, which is not installed: pip install "loraprune[quantization]".'
        )


def quantization_config(name: str, dtype: torch.dtype) -> Any:
    """What transformers wants to know of a quantization.

    Args:
        name: one of :data:`QUANTIZATIONS`.
        dtype: to compute in.
    """
    check_quantization(name)
    if name == "torchao-int8":
        from torchao.quantization import Int8WeightOnlyConfig
        from transformers import TorchAoConfig

        return TorchAoConfig(Int8WeightOnlyConfig())
    from transformers import BitsAndBytesConfig

    if name == "bnb-8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )
