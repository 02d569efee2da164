"""Byte-level merges (GPT-2, Llama 3, Qwen): every byte is a character, text is cut by a pattern, merges have ranks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from loraprune.checkpoint.exports.checkpoint import RuntimeFormatError
from loraprune.checkpoint.exports.gguf.merging import Merge, Merging
from loraprune.checkpoint.exports.gguf.pre_tokenizers import pre_tokenizer_for, steps_of

if TYPE_CHECKING:
    from tokenizers import Tokenizer


def is_byte_level(description: Mapping[str, Any]) -> bool:
    """Whether a tokenizer (the content of ``tokenizer.json``) turns bytes into characters."""
    return any(step[0] == "ByteLevel" for step in steps_of(description["pre_tokenizer"]))


def byte_level_merging(
    backend: Tokenizer, description: Mapping[str, Any], merges: Sequence[Merge], chosen: str | None
) -> Merging:
    """Translate a byte-level tokenizer.

    Args:
        backend: the tokenizer.
        description: the content of its ``tokenizer.json``.
        merges: its merges.
        chosen: llama.cpp's way to cut text that the user chose; None finds the equal one.

    Raises:
        RuntimeFormatError: llama.cpp has no such tokenizer.
    """
    if not merges:
        raise RuntimeFormatError("llama.cpp loads no byte-level tokenizer without merges, and this one has none.")
    if any(" " in part for merge in merges for part in merge):
        raise RuntimeFormatError("The tokenizer has merges of spaces, which byte-level merges in GGUF cannot hold.")
    notes = []
    normalizer = description["normalizer"]
    if normalizer is not None:
        if normalizer["type"] != "NFC":
            raise RuntimeFormatError(
                f"llama.cpp changes no text before it cuts it, and this tokenizer does ({normalizer['type']})."
            )
        notes.append("llama.cpp does not compose accents (NFC); text that comes in that form is cut alike")
    pre = pre_tokenizer_for(backend, description, chosen)
    if chosen is not None:
        notes.append(f"text is cut as {pre} does it: compare the tokens of your texts with the original's")
    return Merging(model="gpt2", pre=pre, merges=merges, notes=tuple(notes))
