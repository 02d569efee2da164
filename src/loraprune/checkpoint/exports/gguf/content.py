"""Everything that goes into a GGUF file but the numbers of its tensors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from loraprune.checkpoint.exports.checkpoint import Checkpoint, RuntimeFormatError
from loraprune.checkpoint.exports.gguf.architecture import (
    GgufArchitecture,
    architecture_for,
    check_family,
    gguf_context,
    gguf_head_dim,
    metadata,
)
from loraprune.checkpoint.exports.gguf.rotary import frequency_divisors
from loraprune.checkpoint.exports.gguf.tensors import GgufTensor, gguf_tensors
from loraprune.checkpoint.exports.gguf.tokenizer import GgufTokenizer, gguf_tokenizer, tokenizer_of_folder

if TYPE_CHECKING:
    from torch import Tensor

OUTTYPES = ("f16", "f32", "q8_0")
_BLOCK = 32
"""How many numbers of a row share a scale in ``q8_0``."""


@dataclass(frozen=True, kw_only=True)
class GgufContent:
    """A file before its tensors are read.

    Attributes:
        name: of the model.
        outtype: in which matrices are written.
        architecture: that computes what the checkpoint computes.
        metadata: its numbers by their keys.
        tokenizer: as the file holds it.
        tensors: in order.
        divisors: of the rotary frequencies; None where they are the ordinary ones.
        notes: what the user should know about the file.
    """

    name: str
    outtype: str
    architecture: GgufArchitecture
    metadata: dict[str, Any]
    tokenizer: GgufTokenizer
    tensors: list[GgufTensor]
    divisors: Tensor | None
    notes: tuple[str, ...]


def stored_type(outtype: str, shape: tuple[int, ...]) -> str:
    """In which type a tensor is written: vectors in 32 bits; rows that are no whole blocks in 16 instead of 8."""
    if len(shape) == 1:
        return "f32"
    return "f16" if outtype == "q8_0" and shape[-1] % _BLOCK else outtype


def gguf_content(checkpoint: Checkpoint, outtype: str, pre_tokenizer: str | None) -> GgufContent:
    """Find out what goes into a file.

    Raises:
        RuntimeFormatError: the outtype is unknown, or llama.cpp cannot compute what the checkpoint computes.
    """
    if outtype not in OUTTYPES:
        raise RuntimeFormatError(f"There is no outtype {outtype!r}; choose one of {', '.join(OUTTYPES)}.")
    check_family(checkpoint.model_type)
    config = checkpoint.config()
    widths = checkpoint.widths()
    architecture = architecture_for(checkpoint.model_type, config, widths)
    tensors = gguf_tensors(architecture, config, widths, checkpoint.tensors)
    tokenizer = gguf_tokenizer(tokenizer_of_folder(checkpoint.folder), config, pre_tokenizer)
    notes = []
    wider = sum(stored_type(outtype, tensor.shape) == "f16" for tensor in tensors) if outtype == "q8_0" else 0
    if wider:
        notes.append(f"{wider} matrices are in f16: their rows are no multiple of {_BLOCK}, which q8_0 needs")
    context = gguf_context(config)
    if context < config.max_position_embeddings:
        notes.append(f"the context is {context} tokens: up to there a sliding window is attention over everything")
    return GgufContent(
        name=checkpoint.folder.resolve().name,
        outtype=outtype,
        architecture=architecture,
        metadata=metadata(architecture, config, widths),
        tokenizer=tokenizer,
        tensors=tensors,
        divisors=frequency_divisors(config, gguf_head_dim(config)),
        notes=(*notes, *tokenizer.notes),
    )
