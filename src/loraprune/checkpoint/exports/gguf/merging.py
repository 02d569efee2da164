"""How text becomes tokens, as the format tells it; byte-level and SentencePiece-like tokenizers fill it in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

Merge = tuple[str, str]


@dataclass(frozen=True, kw_only=True)
class Merging:
    """What llama.cpp needs to know beside the tokens.

    Attributes:
        model: llama.cpp's name for the kind: ``gpt2`` or ``llama``.
        pre: how text is cut before merging.
        merges: pairs of tokens, the first ones first; empty where scores take their place.
        scores: one a token; empty where merges take their place.
        add_space_prefix: text gets a space in front.
        notes: where llama.cpp may give other tokens than the original.
    """

    model: str
    pre: str
    merges: Sequence[Merge] = ()
    scores: Sequence[float] = ()
    add_space_prefix: bool = False
    notes: tuple[str, ...] = ()
