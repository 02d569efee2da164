"""Text as token ids, and what stands before and behind it: never what a tokenizer happens to add."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from loraprune.options.field import check_choice

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BOS_CHOICES = ("auto", "always", "never")
"""What begins with the beginning-of-sequence token. ``auto``: a text, if its tokenizer puts it there by itself, once,
however the text is cut or packed; ``always``: every sequence that a model is given; ``never``: nothing."""


def tokenize(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of each text, without tokens that open or close a sequence."""
    if not texts:  # fast tokenizers fail on an empty batch
        return []
    # `verbose` off: rows longer than the model's context are cut later, and are no reason to warn.
    encoded = tokenizer(list(texts), add_special_tokens=False, return_attention_mask=False, verbose=False)
    return encoded["input_ids"]


def added_ids(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """What the tokenizer by itself puts before and behind a text."""
    (bare,) = tokenize(tokenizer, ["a"])
    framed: list[int] = tokenizer("a", verbose=False)["input_ids"]
    if bare:
        starts = range(len(framed) - len(bare) + 1)
        start = next((i for i in starts if framed[i : i + len(bare)] == bare), 0)
    else:
        start = int(framed[:1] == [tokenizer.bos_token_id])
    return framed[:start], framed[start + len(bare) :]


def opening_ids(tokenizer: PreTrainedTokenizerBase, bos: str = "auto") -> list[int]:
    """The tokens that a sequence begins with.

    Args:
        tokenizer: of the model.
        bos: ``auto``: what the tokenizer puts before a text by itself; ``always``: the same, or the
            beginning-of-sequence token if that is not in it; ``never``: none.

    Raises:
        ValueError: ``bos`` is none of these, or is ``always`` and the tokenizer has no such token.
    """
    check_choice("bos", bos, BOS_CHOICES)
    if bos == "never":
        return []
    opening, token = added_ids(tokenizer)[0], tokenizer.bos_token_id
    if bos == "auto" or token in opening:
        return opening
    if token is None:
        raise ValueError(
            "--bos is always, and the tokenizer has no beginning-of-sequence token. Say --bos auto, or name another "
            "tokenizer with --tokenizer."
        )
    return [token, *opening]


def text_and_segment_opening(tokenizer: PreTrainedTokenizerBase, bos: str) -> tuple[list[int], list[int]]:
    """What a text begins with, and what each segment begins with that texts are cut into."""
    opening = opening_ids(tokenizer, bos)
    return (opening, []) if bos == "auto" else ([], opening)


def opened(opening: list[int], token_ids: list[int]) -> list[int]:
    """Put ``opening`` before ``token_ids``, unless they begin with it."""
    return token_ids if token_ids[: len(opening)] == opening else [*opening, *token_ids]


def closed(tokenizer: PreTrainedTokenizerBase, token_ids: list[int]) -> list[int]:
    """Put the end-of-sequence token behind ``token_ids``, unless they end with it or the tokenizer has none."""
    eos = tokenizer.eos_token_id
    return token_ids if eos is None or token_ids[-1:] == [eos] else [*token_ids, eos]


def encode_prompt(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Token ids of a text that a causal language model goes on from: opened, and not closed."""
    (token_ids,) = tokenize(tokenizer, [text])
    return opened(opening_ids(tokenizer), token_ids)


_CONTEXT = ("max_position_embeddings", "max_seq_len")
"""What the configs of families call the most tokens of an input; MPT has the second."""


def longest_input(config: Any) -> int | None:
    """Tokens of an input that a config allows at most; None where it says nothing."""
    found = (getattr(config, name, None) for name in _CONTEXT)
    return next((value for value in found if isinstance(value, int)), None)
