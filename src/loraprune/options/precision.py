"""Names of data types and quantizations, without importing torch."""

from __future__ import annotations

from importlib.util import find_spec

from loraprune.options.field import check_choice

DTYPE_NAMES = ("float32", "bfloat16", "float16")
"""Data types for computing and saving models."""

QUANTIZATIONS = {"bnb-8bit": "bitsandbytes", "bnb-4bit": "bitsandbytes", "torchao-int8": "torchao"}
"""Names of quantizations, with the package that each needs."""


def check_quantization(name: str | None) -> None:
    """Check that a quantization exists and that its package is installed.

    Raises:
        ValueError: there is no such quantization, or its package is missing.
    """
    if name is None:
        return
    check_choice("quantization", name, tuple(QUANTIZATIONS))
    package = QUANTIZATIONS[name]
    if find_spec(package) is None:
        raise ValueError(
            f'The quantization {name!r} needs {package}, which is not installed: pip install "loraprune[quantization]".'
        )
