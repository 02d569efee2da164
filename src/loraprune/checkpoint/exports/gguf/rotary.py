"""Scaled rotary embeddings as llama.cpp takes them: one divisor for each frequency."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from loraprune.checkpoint.exports.checkpoint import RuntimeFormatError

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PretrainedConfig

_SCALED = ("linear", "llama3")
"""Kinds that are nothing but other frequencies, the same for every length of text."""


def _kind(parameters: dict[str, Any]) -> str:
    return str(parameters.get("rope_type", "default"))


def is_scaled(config: PretrainedConfig) -> bool:
    """Whether the frequencies are others than those that follow from the base.

    Raises:
        RuntimeFormatError: the embedding is of a kind that cannot be written.
    """
    parameters: dict[str, Any] = config.rope_parameters
    kind = _kind(parameters)
    if kind not in ("default", *_SCALED):
        raise RuntimeFormatError(
            f"A rotary embedding of the type {kind!r} cannot be written as GGUF here; these can: default, "
            f"{', '.join(_SCALED)}. transformers loads the folder as it is."
        )
    partial = parameters.get("partial_rotary_factor", 1.0)
    if partial != 1.0:
        raise RuntimeFormatError(
            f"A rotary embedding of only {partial:.0%} of a head cannot be written as GGUF here. transformers loads "
            "the folder as it is."
        )
    return kind != "default"


def frequency_divisors(config: PretrainedConfig, head_dim: int) -> Tensor | None:
    """By what llama.cpp divides the frequencies that follow from the base, shape ``(head_dim / 2,)``.

    None where it divides by nothing.
    """
    import torch
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    if not is_scaled(config):
        return None
    parameters: dict[str, Any] = config.rope_parameters
    frequencies, attention_factor = ROPE_INIT_FUNCTIONS[_kind(parameters)](config, torch.device("cpu"))
    assert attention_factor == 1.0
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim
    divisors: Tensor = parameters["rope_theta"] ** -exponents / frequencies
    return divisors
