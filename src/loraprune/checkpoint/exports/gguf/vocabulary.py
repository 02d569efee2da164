"""The tokens of a GGUF file, one for each row of the embedding."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from loraprune.checkpoint.exports.checkpoint import RuntimeFormatError

_BYTE = re.compile("<0x[0-9A-F]{2}>")


class TokenType(IntEnum):
    """What llama.cpp does with a token; the numbers are those of the format."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """Tokens in the order of their ids.

    Attributes:
        tokens: texts; rows of the embedding that no token uses have a name that no text has.
        types: one a token.
    """

    tokens: tuple[str, ...]
    types: tuple[TokenType, ...]

    def of_type(self, *types: TokenType) -> list[str]:
        """The tokens of some types."""
        return [token for token, kind in zip(self.tokens, self.types, strict=True) if kind in types]


def vocabulary_of(description: Mapping[str, Any], size: int) -> Vocabulary:
    """The vocabulary of a tokenizer.

    Args:
        description: the content of its ``tokenizer.json``.
        size: rows of the model's embedding.

    Raises:
        RuntimeFormatError: the embedding has fewer rows than there are tokens, or two ids have the same text.
    """
    model = description["model"]
    tokens: dict[int, tuple[str, TokenType]] = {}
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
            f"The tokenizer has ids up to {max(tokens)}, and the model's embedding has {size} rows: they do not "
            "belong together."
        )
    entries = [tokens.get(number, (f"[PAD{number}]", TokenType.UNUSED)) for number in range(size)]
    texts = tuple(text for text, _ in entries)
    if len(set(texts)) < size:
        twice = next(text for number, text in enumerate(texts) if text in texts[:number])
        raise RuntimeFormatError(f"Two ids have the token {twice!r}, and llama.cpp loads no such vocabulary.")
    return Vocabulary(tokens=texts, types=tuple(kind for _, kind in entries))
