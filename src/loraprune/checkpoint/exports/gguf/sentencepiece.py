"""SentencePiece-like merges (Llama 2, Mistral): spaces are characters, and unknown characters become bytes.

llama.cpp merges by the score of the resulting token, whatever its two parts; the tokenizers library merges by the rank
of the pair. Both agree if the merges list every pair that makes a token, as for vocabularies from SentencePiece.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from loraprune.checkpoint.exports.checkpoint import RuntimeFormatError

_SPACE = "▁"
_ESCAPED = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}
_PREFIXED = {"type": "Prepend", "prepend": _SPACE}


def sentencepiece_notes(
    description: Mapping[str, Any], merges: Sequence[tuple[str, str]], vocabulary: Mapping[str, int]
) -> list[str]:
    """Return notes on where llama.cpp may give other tokens than a SentencePiece-like tokenizer.

    Args:
        description: content of its ``tokenizer.json``.
        merges: its merges.
        vocabulary: its tokens with their types.

    Raises:
        RuntimeFormatError: llama.cpp has no such tokenizer.
    """
    from gguf import TokenType

    notes = []
    if sum(kind == TokenType.BYTE for kind in vocabulary.values()) < 256:
        notes.append(
            "the vocabulary lacks tokens for single bytes: llama.cpp ends the program at a character that is not in "
            "the vocabulary"
        )
    normal, listed = {token for token, kind in vocabulary.items() if kind == TokenType.NORMAL}, set(merges)
    unlisted = [
        (token[:cut], token[cut:])
        for token in vocabulary
        if token in normal
        for cut in range(1, len(token))
        if token[:cut] in normal and token[cut:] in normal and (token[:cut], token[cut:]) not in listed
    ]
    if unlisted:
        first, second = unlisted[0]
        notes.append(
            f"{len(unlisted)} pairs of tokens make a token but are not among the merges (such as {first!r} and "
            f"{second!r}); llama.cpp merges them too, so some words get other tokens"
        )
    if all(adds_space(description)):
        notes.append("llama.cpp puts a space before every text, even if it starts with a space")
    return notes


def adds_space(description: Mapping[str, Any]) -> tuple[bool, bool]:
    """Return whether text gets a space in front, and whether the pre-tokenizer puts it there.

    Raises:
        RuntimeFormatError: llama.cpp has no tokenizer that normalizes and splits text in the same way.
    """
    normalizer, cutting = description["normalizer"], description["pre_tokenizer"]
    changes: list[Any] = [] if normalizer is None else normalizer.get("normalizers", [normalizer])
    if cutting is None and changes in ([_PREFIXED, _ESCAPED], [_ESCAPED]):
        return _PREFIXED in changes, False
    if not changes and cutting is not None and cutting["type"] == "Metaspace" and cutting["replacement"] == _SPACE:
        inner = any(_SPACE in token[1:] for token in description["model"]["vocab"])
        if not (cutting.get("split", True) and inner):
            return cutting.get("prepend_scheme", "always") != "never", True
    raise RuntimeFormatError(
        "llama.cpp has no tokenizer that normalizes and splits text as this one does (normalizer and pre_tokenizer in "
        "tokenizer.json). transformers loads the folder as it is."
    )


def sentencepiece_scores(vocabulary: Mapping[str, int], merges: Sequence[tuple[str, str]]) -> list[float]:
    """Return the score of each token: the earlier its merge, the higher; tokens without a merge come last."""
    ranks: dict[str, int] = {}
    for rank, (first, second) in enumerate(merges):
        ranks.setdefault(first + second, rank)
    return [-float(ranks.get(token, len(merges))) for token in vocabulary]
