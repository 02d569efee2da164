"""Text as token ids, with explicit opening and closing tokens instead of those that a tokenizer adds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from loraprune.options.field import check_choice

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BOS_CHOICES = ("auto", "always", "never")
"""Where the beginning-of-sequence token goes. ``auto``: once before each text, if the tokenizer adds it by itself;
``always``: before every sequence that the model gets; ``never``: nowhere."""


def tokenize(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """Return the token ids of each text, without tokens that open or close a sequence."""
    if not texts:  # fast tokenizers fail on an empty batch
        return []
    # `verbose=False`: no warning about rows longer than the model's context, which are cut later.
    encoded = tokenizer(list(texts), add_special_tokens=False, return_attention_mask=False, verbose=False)
    return encoded["input_ids"]


def added_ids(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """Return the tokens that the tokenizer adds before and after a text by default."""
    (bare,) = tokenize(tokenizer, ["a"])
    framed: list[int] = tokenizer("a", verbose=False)["input_ids"]
    if bare:
        starts = range(len(framed) - len(bare) + 1)
        start = next((i for i in starts if framed[i : i + len(bare)] == bare), 0)
    else:
        start = int(framed[:1] == [tokenizer.bos_token_id])
    return framed[:start], framed[start + len(bare) :]


def opening_ids(tokenizer: PreTrainedTokenizerBase, bos: str = "auto") -> list[int]:
    """Return the tokens that a sequence begins with.

    Args:
        tokenizer: tokenizer of the model.
        bos: ``auto``: the tokens that the tokenizer adds before a text by default; ``always``: the same, with the
            beginning-of-sequence token in front if it is not among them; ``never``: none.

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
            "--bos is always, but the tokenizer has no beginning-of-sequence token. Use --bos auto, or pass another "
            "tokenizer with --tokenizer."
        )
    return [token, *opening]


def text_and_segment_opening(tokenizer: PreTrainedTokenizerBase, bos: str) -> tuple[list[int], list[int]]:
    """Return the opening tokens of a text, and those of each segment that a text is cut into."""
    opening = opening_ids(tokenizer, bos)
    return (opening, []) if bos == "auto" else ([], opening)


def opened(opening: list[int], token_ids: list[int]) -> list[int]:
    """Prepend ``opening`` to ``token_ids``, unless they begin with it."""
    return token_ids if token_ids[: len(opening)] == opening else [*opening, *token_ids]


def closed(tokenizer: PreTrainedTokenizerBase, token_ids: list[int]) -> list[int]:
    """Append the end-of-sequence token to ``token_ids``, unless they end with it or the tokenizer has none."""
    eos = tokenizer.eos_token_id
    return token_ids if eos is None or token_ids[-1:] == [eos] else [*token_ids, eos]


def encode_prompt(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Return the token ids of a text that a causal language model continues: opened but not closed."""
    (token_ids,) = tokenize(tokenizer, [text])
    return opened(opening_ids(tokenizer), token_ids)


_CONTEXT = ("max_position_embeddings", "max_seq_len")
"""Names of the maximum input length in configs; MPT has the second."""


def longest_input(config: Any) -> int | None:
    """Return the maximum number of input tokens that a config allows; None if it does not state one."""
    found = (getattr(config, name, None) for name in _CONTEXT)
    return next((value for value in found if isinstance(value, int)), None)
