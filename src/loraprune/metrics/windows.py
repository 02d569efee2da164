"""Splitting of a text into windows of tokens: the scored tokens, and the words and bytes that they cover."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from loraprune.data.encoding import text_and_segment_opening

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from loraprune.metrics.texts import Text

_WORD = re.compile(r"\S+")


@dataclass(frozen=True, kw_only=True)
class Windows:
    """Windows of one length over a text.

    Attributes:
        ids_WL: token ids, one window per row.
        first_scored: for each window, position of the first scored token; all later ones are scored too.
        num_bytes: UTF-8 bytes of the scored tokens' text; ``num_words``: words that begin in it.
    """

    ids_WL: torch.Tensor
    first_scored: tuple[int, ...]
    num_bytes: int
    num_words: int

    @property
    def length(self) -> int:
        """Tokens in a window."""
        return self.ids_WL.shape[1]

    @property
    def num_scored(self) -> int:
        """Total number of scored tokens."""
        return sum(self.length - first for first in self.first_scored)


def cut_into_windows(
    text: Text,
    tokenizer: PreTrainedTokenizerBase,
    *,
    length: int,
    stride: int | None = None,
    limit: int | None = None,
    bos: str = "auto",
) -> Windows:
    """Tokenize the whole text and split it into windows. An incomplete last window is dropped.

    By default, the tokenizer's start tokens come once, at the beginning of the text, and the first token of a window is
    not scored. With ``bos="always"``, each window starts with the start tokens, which are not scored.

    Without a stride, windows follow one another, and all other tokens are scored. With a stride, each window starts
    ``stride`` tokens of text after the previous one, and only its last ``stride`` tokens are scored (in the first
    window, all except those at its beginning). Every other token therefore has at least ``length - stride`` tokens
    before it.

    Args:
        text: text to split.
        tokenizer: tokenizer of the model.
        length: tokens per window.
        stride: tokens between the starts of two windows, less than ``length``; None is ``length``.
        limit: maximum number of windows; the text's own limit also applies.
        bos: one of :data:`~loraprune.data.encoding.BOS_CHOICES`.

    Raises:
        ValueError: the text is shorter than one window, or a window is shorter than its start tokens.
    """
    fast, (before, opening) = bool(tokenizer.is_fast), text_and_segment_opening(tokenizer, bos)
    body = length - len(opening)
    if body < 1:
        raise ValueError(f"Segments of {length} tokens have no room after their {len(opening)} start tokens.")
    encoded: Any = tokenizer(text.text, add_special_tokens=False, return_offsets_mapping=fast, verbose=False)
    ids = torch.tensor(before + encoded["input_ids"], dtype=torch.int64)
    step = min(stride or body, body)
    count = (len(ids) - body) // step + 1 if len(ids) >= body else 0
    if count == 0:
        raise ValueError(
            f"The text {text.name!r} has {len(ids):,} tokens for this tokenizer, less than one segment of {length:,}. "
            "Give a longer text, or shorter segments with --max-length."
        )
    count = min(number for number in (count, limit, text.max_segments) if number is not None)
    ids_WL = torch.cat([torch.tensor(opening).long().expand(count, -1), ids.unfold(0, body, step)[:count]], dim=1)
    least = max(1, len(opening))
    first = (least, *((least if stride is None else max(least, length - stride)) for _ in range(count - 1)))
    if fast:
        scored = np.zeros(len(ids), dtype=bool)
        for window, start in enumerate(first):
            scored[window * step + start - len(opening) : window * step + body] = True
        num_bytes, num_words = _covered(text.text, [(0, 0)] * len(before) + encoded["offset_mapping"], scored)
    else:
        num_bytes, num_words = _decoded(tokenizer, ids_WL, first)
    return Windows(ids_WL=ids_WL, first_scored=first, num_bytes=num_bytes, num_words=num_words)


def _covered(text: str, offsets: list[tuple[int, int]], scored: np.ndarray[Any, Any]) -> tuple[int, int]:
    """Return the exact numbers of bytes and words of the scored tokens.

    A token covers the text between the end of the previous tokens' text and its own end. Space that belongs to no token
    counts to the next one. A character split into several tokens counts to the first of them. A word counts at its
    beginning.
    """
    ends = np.maximum.accumulate(np.array([end for _, end in offsets], dtype=np.int64))
    code_points = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
    widths = 1 + sum((code_points >= limit).astype(np.int64) for limit in (0x80, 0x800, 0x10000))
    bytes_before = np.concatenate([[0], np.cumsum(widths)])
    words = np.array([match.start() for match in _WORD.finditer(text)], dtype=np.int64)
    num_bytes = np.diff(bytes_before[ends], prepend=0)[scored].sum()
    num_words = np.diff(np.searchsorted(words, ends, side="left"), prepend=0)[scored].sum()
    return int(num_bytes), int(num_words)


def _decoded(tokenizer: PreTrainedTokenizerBase, ids_WL: torch.Tensor, first: tuple[int, ...]) -> tuple[int, int]:
    """Count by decoding, for tokenizers without token offsets. The error is at most one space per window."""
    pieces = [
        str(tokenizer.decode(ids[start:], skip_special_tokens=True)) for ids, start in zip(ids_WL, first, strict=True)
    ]
    return sum(len(piece.encode("utf-8")) for piece in pieces), sum(len(piece.split()) for piece in pieces)
