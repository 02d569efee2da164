"""A checkpoint's tokenizer as a GGUF file holds it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loraprune.checkpoint.exports.checkpoint import RuntimeFormatError
from loraprune.checkpoint.exports.gguf.byte_level import byte_level_merging, is_byte_level
from loraprune.checkpoint.exports.gguf.merging import Merge, Merging
from loraprune.checkpoint.exports.gguf.sentencepiece import sentencepiece_merging
from loraprune.checkpoint.exports.gguf.vocabulary import Vocabulary, vocabulary_of

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

ROLES = ("bos", "eos", "unk", "pad")


@dataclass(frozen=True, kw_only=True)
class GgufTokenizer:
    """What goes into the file.

    Attributes:
        vocabulary: tokens and their types.
        merging: how text becomes tokens.
        special: ids by role.
        add_bos: text gets ``bos`` in front.
        add_eos: text gets ``eos`` at its end.
        chat_template: Jinja source, or None.
        notes: where llama.cpp may give other tokens than the original.
    """

    vocabulary: Vocabulary
    merging: Merging
    special: Mapping[str, int]
    add_bos: bool
    add_eos: bool
    chat_template: str | None
    notes: tuple[str, ...]


def tokenizer_of_folder(folder: Path) -> PreTrainedTokenizerBase:
    """Load a checkpoint's tokenizer.

    Raises:
        RuntimeFormatError: there is none in the form of the tokenizers library.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    if not (folder / "tokenizer.json").is_file():
        raise RuntimeFormatError(
            f"{folder} has no tokenizer.json. Put it there first: "
            f"AutoTokenizer.from_pretrained(MODEL).save_pretrained({str(folder)!r})"
        )
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder)
    except (ValueError, KeyError):
        # A ragged checkpoint's model_type may be unknown to transformers; the tokenizer does not depend on it.
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    return tokenizer


def gguf_tokenizer(
    tokenizer: PreTrainedTokenizerBase, config: PretrainedConfig, pre_tokenizer: str | None = None
) -> GgufTokenizer:
    """Translate a tokenizer.

    Args:
        tokenizer: of the tokenizers library.
        config: of its model: the number of rows in the embedding, and special ids that the tokenizer does not name.
        pre_tokenizer: name of llama.cpp's way to cut text, for byte-level tokenizers; None finds the equal one.

    Raises:
        RuntimeFormatError: llama.cpp has no such tokenizer.
    """
    backend = tokenizer.backend_tokenizer
    description = json.loads(backend.to_str())
    _check_model(description["model"])
    vocabulary = vocabulary_of(description, config.vocab_size)
    merges = [_pair(merge) for merge in description["model"]["merges"]]
    if is_byte_level(description):
        merging = byte_level_merging(backend, description, merges, pre_tokenizer)
    elif pre_tokenizer is not None:
        raise RuntimeFormatError("A pre-tokenizer can be chosen for byte-level tokenizers only; this one is none.")
    else:
        merging = sentencepiece_merging(description, merges, vocabulary)
    special = _special_ids(tokenizer, config)
    add_bos, add_eos, notes = _frame(tokenizer, special)
    stripping = sum(1 for token in description["added_tokens"] if token["lstrip"] or token["rstrip"])
    if stripping:
        notes.append(f"{stripping} added tokens swallow the spaces beside them, which llama.cpp leaves there")
    return GgufTokenizer(
        vocabulary=vocabulary,
        merging=merging,
        special=special,
        add_bos=add_bos,
        add_eos=add_eos,
        chat_template=_chat_template(tokenizer),
        notes=(*merging.notes, *notes),
    )


def _check_model(model: Mapping[str, Any]) -> None:
    kind = model.get("type")
    if kind != "BPE":
        raise RuntimeFormatError(
            f"A tokenizer of the type {kind} cannot be written as GGUF here; those that merge pairs (BPE) can. "
            "transformers loads the folder as it is."
        )
    for name in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(name):
            raise RuntimeFormatError(f"llama.cpp has no merges with {name}, which this tokenizer has.")


def _pair(merge: str | list[str]) -> Merge:
    first, second = merge.split(" ", 1) if isinstance(merge, str) else merge
    return first, second


def _special_ids(tokenizer: PreTrainedTokenizerBase, config: PretrainedConfig) -> dict[str, int]:
    ids = {}
    for role in ROLES:
        number = getattr(tokenizer, f"{role}_token_id", None)
        if number is None:
            number = getattr(config, f"{role}_token_id", None)
        if isinstance(number, list):
            number = number[0] if number else None
        if number is not None and 0 <= number < config.vocab_size:
            ids[role] = number
    return ids


def _frame(tokenizer: PreTrainedTokenizerBase, special: Mapping[str, int]) -> tuple[bool, bool, list[str]]:
    """Which special tokens a text gets in front and at its end, found by encoding one."""
    bare: list[int] = tokenizer("a", add_special_tokens=False)["input_ids"]
    framed: list[int] = tokenizer("a")["input_ids"]
    for bos in (False, True):
        for eos in (False, True):
            front = [special["bos"]] if bos and "bos" in special else []
            end = [special["eos"]] if eos and "eos" in special else []
            if framed == front + bare + end:
                return bos, eos, []
    return False, False, ["the original adds special tokens to a text that llama.cpp will not add"]


def _chat_template(tokenizer: PreTrainedTokenizerBase) -> str | None:
    template = tokenizer.chat_template
    if isinstance(template, dict):
        template = template.get("default")
    return template
