"""Which stored tensor becomes which tensor of a GGUF file, and what happens to its rows on the way."""

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
        name: in the file.
        source: name in the checkpoint.
        shape: of both.
        interleaved_heads: number of heads whose rows change places; 0 where none do.
    """

    name: str
    source: str
    shape: tuple[int, ...]
    interleaved_heads: int = 0

    def convert(self, tensor: Tensor) -> Tensor:
        """Put the rows of the stored tensor where llama.cpp looks for them."""
        return interleave_halves(tensor, self.interleaved_heads) if self.interleaved_heads else tensor


def interleave_halves(tensor: Tensor, heads: int) -> Tensor:
    """Move feature ``i`` of the first half of a head to place ``2 i``, and that of the second half to ``2 i + 1``.

    Args:
        tensor: rows of queries or keys, shape ``(heads · head_dim, …)``.
        heads: how many.
    """
    halves = tensor.reshape(heads, 2, -1, *tensor.shape[1:])
    return halves.transpose(1, 2).reshape(tensor.shape)


def gguf_tensors(
    architecture: GgufArchitecture,
    config: PretrainedConfig,
    widths: Sequence[BlockWidths],
    stored: Mapping[str, StoredTensor],
) -> list[GgufTensor]:
    """Every tensor of the file, in order.

    Raises:
        RuntimeFormatError: a tensor is missing or of another shape than the widths say, or the architecture has no
            place for one that is there.
    """
    tensors = list(_all_tensors(architecture, config, widths, stored))
    for tensor in tensors:
        if tensor.source not in stored:
            raise RuntimeFormatError(f"The checkpoint has no tensor {tensor.source}; save the whole model again.")
        if stored[tensor.source].shape != tensor.shape:
            raise RuntimeFormatError(
                f"{tensor.source} has the shape {stored[tensor.source].shape}, and by config.json it is "
                f"{tensor.shape}: config and weights are not of the same model."
            )
    left = set(stored) - {tensor.source for tensor in tensors}
    unknown = sorted(name for name in left if not _is_redundant(name, tied=config.tie_word_embeddings))
    if unknown:
        raise RuntimeFormatError(
            f"llama.cpp's architecture {architecture.name} has no place for {unknown[0]}"
            f"{f' and {len(unknown) - 1} other tensors' if len(unknown) > 1 else ''}. transformers loads the folder "
            "as it is."
        )
    return tensors


def _is_redundant(name: str, *, tied: bool) -> bool:
    """Whether a stored tensor says nothing new: frequencies that old versions saved, a head tied to the embedding."""
    return name.endswith("rotary_emb.inv_freq") or (tied and name == "lm_head.weight")


def _all_tensors(
    architecture: GgufArchitecture,
    config: PretrainedConfig,
    widths: Sequence[BlockWidths],
    stored: Mapping[str, StoredTensor],
) -> Iterator[GgufTensor]:
    hidden, vocabulary = config.hidden_size, config.vocab_size
    yield GgufTensor(name="token_embd.weight", source="model.embed_tokens.weight", shape=(vocabulary, hidden))
    for number, block in enumerate(widths):
        for tensor in _block_tensors(architecture, block, hidden, gguf_head_dim(config)):
            named = GgufTensor(
                name=f"blk.{number}.{tensor.name}",
                source=f"model.layers.{number}.{tensor.source}",
                shape=tensor.shape,
                interleaved_heads=tensor.interleaved_heads,
            )
            if named.source.endswith(".weight") or named.source in stored:
                yield named
    yield GgufTensor(name="output_norm.weight", source="model.norm.weight", shape=(hidden,))
    if not config.tie_word_embeddings:
        yield GgufTensor(name="output.weight", source="lm_head.weight", shape=(vocabulary, hidden))


def _block_tensors(
    architecture: GgufArchitecture, block: BlockWidths, hidden: int, head_dim: int
) -> Iterator[GgufTensor]:
    """Tensors of one block with names inside of it; biases whether they are there or not."""
    queries, keys, channels = block.num_attention_heads, block.num_key_value_heads, block.intermediate_size
    yield GgufTensor(name="attn_norm.weight", source="input_layernorm.weight", shape=(hidden,))
    for name, layer, outputs, inputs, heads in (
        ("attn_q", "self_attn.q_proj", queries * head_dim, hidden, queries),
        ("attn_k", "self_attn.k_proj", keys * head_dim, hidden, keys),
        ("attn_v", "self_attn.v_proj", keys * head_dim, hidden, 0),
        ("attn_output", "self_attn.o_proj", hidden, queries * head_dim, 0),
        ("ffn_gate", "mlp.gate_proj", channels, hidden, 0),
        ("ffn_up", "mlp.up_proj", channels, hidden, 0),
        ("ffn_down", "mlp.down_proj", hidden, channels, 0),
    ):
        interleaved = heads if architecture.interleaved else 0
        yield GgufTensor(
            name=f"{name}.weight",
            source=f"{layer}.weight",
            shape=(outputs, inputs),
            interleaved_heads=interleaved,
        )
        if layer.rpartition(".")[2] in architecture.biases:
            yield GgufTensor(
                name=f"{name}.bias", source=f"{layer}.bias", shape=(outputs,), interleaved_heads=interleaved
            )
    if architecture.head_norms:
        yield GgufTensor(name="attn_q_norm.weight", source="self_attn.q_norm.weight", shape=(head_dim,))
        yield GgufTensor(name="attn_k_norm.weight", source="self_attn.k_norm.weight", shape=(head_dim,))
    yield GgufTensor(name="ffn_norm.weight", source="post_attention_layernorm.weight", shape=(hidden,))
