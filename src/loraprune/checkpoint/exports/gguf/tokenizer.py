"""A checkpoint's tokenizer in a GGUF file."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loraprune.checkpoint.exports.checkpoint import RuntimeFormatError
from loraprune.checkpoint.exports.gguf.pre_tokenizers import is_byte_level, pre_tokenizer_for
from loraprune.checkpoint.exports.gguf.sentencepiece import adds_space, sentencepiece_notes, sentencepiece_scores

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

_ROLES = ("bos", "eos", "unk", "pad")
_BYTE = re.compile("<0x[0-9A-F]{2}>")


def tokenizer_of_folder(folder: Path) -> PreTrainedTokenizerBase:
    """Load a checkpoint's tokenizer.

    Raises:
        RuntimeFormatError: there is no ``tokenizer.json``.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    if not (folder / "tokenizer.json").is_file():
        raise RuntimeFormatError(
            f"{folder} has no tokenizer.json. Save one there first: "
            f"AutoTokenizer.from_pretrained(MODEL).save_pretrained({str(folder)!r})"
        )
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder)
    except (ValueError, KeyError):
        # A ragged checkpoint's model_type may be unknown to transformers; the tokenizer does not depend on it.
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    return tokenizer


def add_tokenizer(
    writer: Any, tokenizer: PreTrainedTokenizerBase, config: PretrainedConfig, pre_tokenizer: str | None = None
) -> tuple[str, str, tuple[str, ...]]:
    """Add a tokenizer to a ``gguf.GGUFWriter``.

    Args:
        writer: writer of the file.
        tokenizer: tokenizer of the tokenizers library.
        config: config of its model: number of rows in the embedding, and special ids that the tokenizer lacks.
        pre_tokenizer: llama.cpp's name of a pre-tokenizer, for byte-level tokenizers; None finds the equal one.

    Returns:
        llama.cpp's name of the tokenizer model (``gpt2``: byte-level merges, ``llama``: SentencePiece-like merges), its
        name of the pre-tokenizer, and notes on where llama.cpp may give other tokens than the original.

    Raises:
        RuntimeFormatError: llama.cpp has no such tokenizer.
    """
    backend = tokenizer.backend_tokenizer
    description = json.loads(backend.to_str())
    _check_model(description["model"])
    vocabulary = vocabulary_of(description, config.vocab_size)
    merges: list[tuple[str, str]] = [
        tuple(merge.split(" ", 1) if isinstance(merge, str) else merge) for merge in description["model"]["merges"]
    ]
    byte_level = is_byte_level(description)
    if byte_level:
        model, (pre, notes) = "gpt2", _byte_level_pre(backend, description, merges, pre_tokenizer)
    elif pre_tokenizer is not None:
        raise RuntimeFormatError(
            "--pre-tokenizer is for byte-level tokenizers only, and this tokenizer is not byte-level. Leave it out."
        )
    else:
        model, pre, notes = "llama", "default", sentencepiece_notes(description, merges, vocabulary)
    writer.add_tokenizer_model(model)
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(list(vocabulary))
    writer.add_token_types([int(kind) for kind in vocabulary.values()])
    if byte_level:
        writer.add_token_merges([" ".join(merge) for merge in merges])
    else:
        writer.add_token_scores(sentencepiece_scores(vocabulary, merges))
    special = _special_ids(tokenizer, config)
    for role, number in special.items():
        getattr(writer, f"add_{role}_token_id")(number)
    add_bos, add_eos, frame_notes = _frame(tokenizer, special)
    writer.add_add_bos_token(add_bos)
    writer.add_add_eos_token(add_eos)
    writer.add_add_space_prefix(not byte_level and adds_space(description)[0])
    if template := chat_template_of(tokenizer):
        writer.add_chat_template(template)
    stripping = sum(1 for token in description["added_tokens"] if token["lstrip"] or token["rstrip"])
    if stripping:
        frame_notes.append(f"{stripping} added tokens strip the spaces beside them, but llama.cpp keeps these spaces")
    return model, pre, (*notes, *frame_notes)


def chat_template_of(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Return the chat template that a GGUF file holds: of several, the default one."""
    template = tokenizer.chat_template
    chosen: str | None = template.get("default") if isinstance(template, dict) else template
    return chosen


def vocabulary_of(description: Mapping[str, Any], size: int) -> dict[str, int]:
    """Return the tokens of a tokenizer in order of their ids, each with its ``gguf.TokenType``.

    Args:
        description: content of its ``tokenizer.json``.
        size: number of rows of the model's embedding; rows without a token get the names ``[PAD…]``.

    Raises:
        RuntimeFormatError: a token's id is beyond the embedding, or two ids have the same text.
    """
    from gguf import TokenType

    model = description["model"]
    kind: int
    tokens: dict[int, tuple[str, int]] = {}
    for text, number in model["vocab"].items():
        byte = bool(model.get("byte_fallback")) and _BYTE.fullmatch(text) is not None
        tokens[number] = (text, TokenType.BYTE if byte else TokenType.NORMAL)
    for added in description["added_tokens"]:
        kind = TokenType.CONTROL if added["special"] else TokenType.USER_DEFINED
        tokens[added["id"]] = (added["content"], kind)
    unknown = model["vocab"].get(model.get("unk_token"))
    if unknown is not None:
        tokens[unknown] = (tokens[unknown][0], TokenType.UNKNOWN)
    if max(tokens) >= size:
        raise RuntimeFormatError(
            f"The tokenizer has ids up to {max(tokens)}, but the model's embedding has {size} rows. Save the tokenizer "
            "of this model in the folder."
        )
    vocabulary: dict[str, int] = {}
    for number in range(size):
        text, kind = tokens.get(number, (f"[PAD{number}]", TokenType.UNUSED))
        if text in vocabulary:
            raise RuntimeFormatError(f"Two ids have the token {text!r}, which llama.cpp does not load.")
        vocabulary[text] = kind
    return vocabulary


def _check_model(model: Mapping[str, Any]) -> None:
    kind = model.get("type")
    if kind != "BPE":
        raise RuntimeFormatError(
            f"loraprune cannot write a tokenizer of type {kind} as GGUF; it writes BPE tokenizers. "
            "transformers loads the folder as it is."
        )
    for name in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(name):
            raise RuntimeFormatError(f"This tokenizer has {name}, which llama.cpp does not support.")


def _byte_level_pre(
    backend: Tokenizer, description: Mapping[str, Any], merges: Sequence[tuple[str, str]], chosen: str | None
) -> tuple[str, list[str]]:
    """Return llama.cpp's pre-tokenizer for byte-level merges (GPT-2, Llama 3, Qwen), and notes."""
    if not merges:
        raise RuntimeFormatError("This byte-level tokenizer has no merges, but llama.cpp needs them.")
    if any(" " in part for merge in merges for part in merge):
        raise RuntimeFormatError("The tokenizer has merges of spaces, which byte-level merges in GGUF cannot hold.")
    notes = []
    normalizer = description["normalizer"]
    if normalizer is not None:
        if normalizer["type"] != "NFC":
            raise RuntimeFormatError(
                f"llama.cpp does not normalize text, but this tokenizer does ({normalizer['type']})."
            )
        notes.append("llama.cpp does not compose accents (NFC); text that is already in that form gets the same tokens")
    pre = pre_tokenizer_for(backend, description, chosen)
    if chosen is not None:
        notes.append(f"text is split by {pre}: compare the tokens of your texts with those of the original tokenizer")
    return pre, notes


def _special_ids(tokenizer: PreTrainedTokenizerBase, config: PretrainedConfig) -> dict[str, int]:
    ids = {}
    for role in _ROLES:
        numbers = [getattr(owner, f"{role}_token_id", None) for owner in (tokenizer, config)]
        number = next((number for number in numbers if number is not None), None)
        if isinstance(number, list):
            number = next(iter(number), None)
        if number is not None and 0 <= number < config.vocab_size:
            ids[role] = number
    return ids


def _frame(tokenizer: PreTrainedTokenizerBase, special: Mapping[str, int]) -> tuple[bool, bool, list[str]]:
    """Return whether a text gets BOS and EOS, found by encoding one, and notes."""
    bare: list[int] = tokenizer("a", add_special_tokens=False)["input_ids"]
    framed: list[int] = tokenizer("a")["input_ids"]
    for bos, eos in itertools.product((False, True), repeat=2):
        front = [special["bos"]] if bos and "bos" in special else []
        end = [special["eos"]] if eos and "eos" in special else []
        if framed == front + bare + end:
            return bos, eos, []
    return False, False, ["the original tokenizer adds special tokens to a text that llama.cpp does not add"]
