"""The tensors of a GGUF file: the stored tensor that each comes from, and the order of its rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from loraprune.checkpoint.exports.checkpoint import BlockWidths, RuntimeFormatError
from loraprune.checkpoint.exports.gguf.architecture import GgufArchitecture, gguf_head_dim

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PretrainedConfig

    from loraprune.checkpoint.weight_files import StoredTensor


@dataclass(frozen=True, kw_only=True)
class GgufTensor:
    """One tensor of the file.

    Attributes:
        name: name in the file.
        source: name in the checkpoint.
        shape: shape in both.
        interleaved_heads: number of heads whose rows are interleaved; 0 leaves all rows in place.
    """

    name: str
    source: str
    shape: tuple[int, ...]
    interleaved_heads: int = 0


def interleave_halves(tensor: Tensor, heads: int) -> Tensor:
    """Move feature ``i`` of the first half of a head to place ``2 i``, and that of the second half to ``2 i + 1``.

    Args:
        tensor: rows of queries or keys, shape ``(heads · head_dim, …)``.
        heads: number of heads; 0 leaves all rows in place.
    """
    if heads == 0:
        return tensor
    halves = tensor.reshape(heads, 2, -1, *tensor.shape[1:])
    return halves.transpose(1, 2).reshape(tensor.shape)


def gguf_tensors(
    architecture: GgufArchitecture,
    config: PretrainedConfig,
    widths: Sequence[BlockWidths],
    stored: Mapping[str, StoredTensor],
) -> list[GgufTensor]:
    """Return all tensors of the file, in order.

    Raises:
        RuntimeFormatError: a tensor is missing, its shape does not match the widths, or the architecture has no place
            for a stored tensor.
    """
    import gguf

    number = next(number for number, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture.name)
    names = gguf.get_tensor_name_map(number, len(widths))
    tensors = [
        GgufTensor(name=f"{names[layer]}.{leaf}", source=f"{layer}.{leaf}", shape=shape, interleaved_heads=heads)
        for layer, leaf, shape, heads in _expected(architecture, config, widths)
        if leaf == "weight" or f"{layer}.{leaf}" in stored
    ]
    for tensor in tensors:
        if tensor.source not in stored:
            raise RuntimeFormatError(f"The checkpoint has no tensor {tensor.source}. Save the whole model again.")
        if stored[tensor.source].shape != tensor.shape:
            raise RuntimeFormatError(
                f"{tensor.source} has the shape {stored[tensor.source].shape}, but config.json implies {tensor.shape}. "
                "Save config and weights of the same model."
            )
    # Redundant: rotary frequencies, which old versions saved, and a stored copy of a tied head.
    redundant = "lm_head.weight" if config.tie_word_embeddings else None
    left = set(stored) - {tensor.source for tensor in tensors} - {redundant}
    unknown = sorted(name for name in left if not name.endswith("rotary_emb.inv_freq"))
    if unknown:
        raise RuntimeFormatError(
            f"llama.cpp's architecture {architecture.name} has no place for {unknown[0]}"
            f"{f' and {len(unknown) - 1} other tensors' if len(unknown) > 1 else ''}. transformers loads the folder "
            "as it is."
        )
    return tensors


def _expected(
    architecture: GgufArchitecture, config: PretrainedConfig, widths: Sequence[BlockWidths]
) -> Iterator[tuple[str, str, tuple[int, ...], int]]:
    """Yield layer, parameter name, shape and heads to interleave; biases also if they are not stored."""
    hidden, head_dim = config.hidden_size, gguf_head_dim(config)
    yield "model.embed_tokens", "weight", (config.vocab_size, hidden), 0
    for number, block in enumerate(widths):
        queries, keys = block.num_attention_heads * head_dim, block.num_key_value_heads * head_dim
        head_norms = {"self_attn.q_norm": (head_dim,), "self_attn.k_norm": (head_dim,)}
        layers: dict[str, tuple[int, ...]] = {
            "input_layernorm": (hidden,),
            "self_attn.q_proj": (queries, hidden),
            "self_attn.k_proj": (keys, hidden),
            "self_attn.v_proj": (keys, hidden),
            "self_attn.o_proj": (hidden, queries),
            "mlp.gate_proj": (block.intermediate_size, hidden),
            "mlp.up_proj": (block.intermediate_size, hidden),
            "mlp.down_proj": (hidden, block.intermediate_size),
            **(head_norms if architecture.head_norms else {}),
            "post_attention_layernorm": (hidden,),
        }
        for layer, shape in layers.items():
            leaf = layer.rpartition(".")[2]
            heads = shape[0] // head_dim if architecture.interleaved and leaf in ("q_proj", "k_proj") else 0
            yield f"model.layers.{number}.{layer}", "weight", shape, heads
            if leaf in architecture.biases:
                yield f"model.layers.{number}.{layer}", "bias", shape[:1], heads
    yield "model.norm", "weight", (hidden,), 0
    if not config.tie_word_embeddings:
        yield "lm_head", "weight", (config.vocab_size, hidden), 0
