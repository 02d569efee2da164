"""Choice of the llama.cpp architecture that computes what a checkpoint does, and its metadata."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from loraprune.checkpoint.exports.checkpoint import BlockWidths, RuntimeFormatError

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PretrainedConfig


@dataclass(frozen=True, kw_only=True)
class GgufArchitecture:
    """An architecture of llama.cpp for Llama-like models.

    Attributes:
        name: name in the file.
        interleaved: whether its rotary embedding rotates neighboring features. That of transformers rotates the two
            halves of a head, so the rows of queries and keys are reordered.
        biases: layers that may have a bias.
        head_norms: whether it normalizes queries and keys.
        per_block: whether each block may have its own widths.
    """

    name: str
    interleaved: bool
    biases: tuple[str, ...]
    head_norms: bool = False
    per_block: bool = False


_ATTENTION_INPUTS = ("q_proj", "k_proj", "v_proj")
_ALL = (*_ATTENTION_INPUTS, "o_proj", "gate_proj", "up_proj", "down_proj")

GGUF_LLAMA = GgufArchitecture(name="llama", interleaved=True, biases=_ALL)
DECI = GgufArchitecture(name="deci", interleaved=True, biases=_ALL, per_block=True)
GGUF_QWEN2 = GgufArchitecture(name="qwen2", interleaved=False, biases=_ATTENTION_INPUTS)
_QWEN3 = GgufArchitecture(name="qwen3", interleaved=False, biases=_ATTENTION_INPUTS, head_norms=True)

_SCALED = ("linear", "llama3")
"""Types of rotary embeddings that only change the frequencies, in the same way for every length."""

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")


def check_family(model_type: str) -> None:
    """Make sure that models of a family can be written as GGUF.

    Raises:
        RuntimeFormatError: they cannot.
    """
    if model_type not in FAMILIES:
        raise RuntimeFormatError(
            f"loraprune cannot write a {model_type} model as GGUF; it writes {', '.join(FAMILIES)}. transformers loads "
            "the folder as it is, and llama.cpp's own convert_hf_to_gguf.py may support the family."
        )


def architecture_for(model_type: str, config: PretrainedConfig, widths: Sequence[BlockWidths]) -> GgufArchitecture:
    """Choose the architecture of a checkpoint.

    Args:
        model_type: one of the families.
        config: config of the checkpoint.
        widths: widths of every block.

    Raises:
        RuntimeFormatError: no architecture computes what the checkpoint does.
    """
    activation = getattr(config, "hidden_act", "silu")
    if activation != "silu":
        raise RuntimeFormatError(
            f"llama.cpp computes Llama-like models with the activation silu, but this one has {activation}. "
            "transformers loads it."
        )
    ragged = len(set(widths)) > 1
    if model_type == "qwen3":
        if ragged:
            raise RuntimeFormatError(
                "The widths differ between layers, which llama.cpp supports only in its architecture deci, and deci "
                "does not normalize queries and keys as qwen3 does. transformers loads the folder after `import "
                "loraprune`. A checkpoint with uniform widths can be exported."
            )
        if is_scaled(config):
            raise RuntimeFormatError(
                "llama.cpp's architecture qwen3 does not support the scaled rotary embedding of this checkpoint. "
                "transformers loads it."
            )
        return _QWEN3
    if ragged:
        return DECI
    square = widths[0].num_attention_heads * gguf_head_dim(config) == config.hidden_size
    # llama.cpp's qwen2 supports only square query projections; its llama supports any, also with biases.
    return GGUF_QWEN2 if model_type == "qwen2" and square and not is_scaled(config) else GGUF_LLAMA


def gguf_head_dim(config: PretrainedConfig) -> int:
    """Return the width of a head, also for older configs without ``head_dim``."""
    head_dim: int = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return head_dim


def gguf_context(config: PretrainedConfig) -> int:
    """Return the largest context in which a sliding window does not limit attention."""
    longest: int = config.max_position_embeddings
    window: int | None = getattr(config, "sliding_window", None)
    return longest if window is None else min(longest, window)


def add_metadata(
    writer: Any, architecture: GgufArchitecture, config: PretrainedConfig, widths: Sequence[BlockWidths]
) -> None:
    """Add the hyperparameters of a model to a ``gguf.GGUFWriter``."""

    def all_blocks(name: str) -> int | list[int]:
        values = [getattr(block, name) for block in widths]
        return values if architecture.per_block else values[0]

    writer.add_context_length(gguf_context(config))
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(len(widths))
    writer.add_feed_forward_length(all_blocks("intermediate_size"))
    writer.add_head_count(all_blocks("num_attention_heads"))
    writer.add_head_count_kv(all_blocks("num_key_value_heads"))
    writer.add_key_length(gguf_head_dim(config))
    writer.add_value_length(gguf_head_dim(config))
    writer.add_layer_norm_rms_eps(float(config.rms_norm_eps))
    writer.add_rope_dimension_count(gguf_head_dim(config))
    writer.add_rope_freq_base(float(config.rope_parameters["rope_theta"]))
    writer.add_vocab_size(config.vocab_size)


def is_scaled(config: PretrainedConfig) -> bool:
    """Whether the rotary frequencies differ from those that follow from the base.

    Raises:
        RuntimeFormatError: the rotary embedding has a type that cannot be written.
    """
    parameters: dict[str, Any] = config.rope_parameters
    kind = parameters.get("rope_type", "default")
    if kind not in ("default", *_SCALED):
        raise RuntimeFormatError(
            f"loraprune cannot write a rotary embedding of type {kind!r} as GGUF; it writes default, "
            f"{', '.join(_SCALED)}. transformers loads the folder as it is."
        )
    partial = parameters.get("partial_rotary_factor", 1.0)
    if partial != 1.0:
        raise RuntimeFormatError(
            f"loraprune cannot write a rotary embedding of only {partial:.0%} of a head as GGUF. transformers loads "
            "the folder as it is."
        )
    return bool(kind != "default")


def frequency_divisors(config: PretrainedConfig) -> Tensor | None:
    """Return what llama.cpp divides the rotary frequencies of the base by, shape ``(head_dim / 2,)``.

    None if the frequencies are not scaled.
    """
    import torch
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    if not is_scaled(config):
        return None
    parameters: dict[str, Any] = config.rope_parameters
    frequencies, attention_factor = ROPE_INIT_FUNCTIONS[parameters["rope_type"]](config, torch.device("cpu"))
    assert attention_factor == 1.0
    head_dim = gguf_head_dim(config)
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim
    divisors: Tensor = parameters["rope_theta"] ** -exponents / frequencies
    return divisors
