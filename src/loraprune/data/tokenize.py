"""Passages as token ids, with labels that train on the answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from loraprune.data.passages import Passage

IGNORED_LABEL = -100
"""Label of a token that no loss is taken on."""


@dataclass(frozen=True, kw_only=True)
class EncodedRow:
    """Token ids, and for each the id to predict there or ``IGNORED_LABEL``."""

    input_ids: list[int]
    labels: list[int]

    @property
    def num_trained(self) -> int:
        """Tokens that a loss is taken on. Nothing predicts the first token of a row, whatever its label."""
        return sum(label != IGNORED_LABEL for label in self.labels[1:])

    def __len__(self) -> int:
        return len(self.input_ids)

    def __add__(self, other: EncodedRow) -> EncodedRow:
        return EncodedRow(input_ids=self.input_ids + other.input_ids, labels=self.labels + other.labels)

    def __getitem__(self, part: slice) -> EncodedRow:
        return EncodedRow(input_ids=self.input_ids[part], labels=self.labels[part])


def tokenize(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of each text, without tokens that open or close a sequence."""
    if not texts:  # fast tokenizers fail on an empty batch
        return []
    # `verbose` off: rows longer than the model's context are cut later, and are no reason to warn.
    encoded = tokenizer(list(texts), add_special_tokens=False, return_attention_mask=False, verbose=False)
    return encoded["input_ids"]


def opening_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The beginning-of-sequence token, where the tokenizer puts one in front of text by itself."""
    bos = tokenizer.bos_token_id
    return [bos] if bos is not None and tokenizer("a")["input_ids"][:1] == [bos] else []


def closed(tokenizer: PreTrainedTokenizerBase, token_ids: list[int]) -> list[int]:
    """Put the end-of-sequence token behind ``token_ids``, unless they end with it or the tokenizer has none."""
    eos = tokenizer.eos_token_id
    return token_ids if eos is None or token_ids[-1:] == [eos] else [*token_ids, eos]


def encode_documents(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, *, opened: bool) -> list[EncodedRow]:
    """Token ids of whole documents, all trained, each closed by the end-of-sequence token.

    ``opened`` puts in front of each what the tokenizer opens a sequence with.
    """
    opening = opening_ids(tokenizer) if opened else []
    documents = [opening + closed(tokenizer, token_ids) for token_ids in tokenize(tokenizer, texts)]
    return [EncodedRow(input_ids=token_ids, labels=token_ids) for token_ids in documents]


def encode_passages(
    passages: Sequence[Passage], tokenizer: PreTrainedTokenizerBase, *, answers_only: bool
) -> list[EncodedRow]:
    """Token ids of each passage, with labels for its answers or, without ``answers_only``, for all of it.

    An answer that runs to the end of its passage includes the end-of-sequence token, so that the model learns to stop.
    """
    opening = opening_ids(tokenizer)
    token_ids = tokenize(tokenizer, [passage.text for passage in passages])
    masks = _answer_masks(passages, token_ids, tokenizer) if answers_only else [[True] * len(ids) for ids in token_ids]
    rows = []
    for passage, ids, mask in zip(passages, token_ids, masks, strict=True):
        if not passage.is_complete:
            end = closed(tokenizer, ids)[len(ids) :]
            ids, mask = opening + ids + end, [not answers_only] * len(opening) + mask + [True] * len(end)
        labels = [token if trained else IGNORED_LABEL for token, trained in zip(ids, mask, strict=True)]
        rows.append(EncodedRow(input_ids=ids, labels=labels))
    return rows


def _answer_masks(
    passages: Sequence[Passage], token_ids: Sequence[list[int]], tokenizer: PreTrainedTokenizerBase
) -> list[list[bool]]:
    """Mark the tokens of the answers.

    A boundary in the text lies where the tokens of the text before it stop to agree with those of the whole. So a
    token that spans the start of an answer belongs to it, as in trl; one that spans its end does not. Offsets would be
    cheaper, but byte-level tokenizers trim spaces from theirs, and slow tokenizers have none.
    """
    cuts = sorted(
        {
            (row, position)
            for row, passage in enumerate(passages)
            for answer in passage.answers
            for position in answer
            if 0 < position < len(passage.text)
        }
    )
    prefixes = tokenize(tokenizer, [passages[row].text[:position] for row, position in cuts])
    token_of = {cut: _common_length(prefix, token_ids[cut[0]]) for cut, prefix in zip(cuts, prefixes, strict=True)}
    masks = [[False] * len(ids) for ids in token_ids]
    for row, (passage, mask) in enumerate(zip(passages, masks, strict=True)):
        for start, end in passage.answers:
            first = token_of.get((row, start), 0)
            last = len(mask) if end == len(passage.text) else token_of[row, end]
            mask[first:last] = [True] * (last - first)
    return masks


def _common_length(first: Sequence[int], second: Sequence[int]) -> int:
    """How many tokens two sequences share from their start."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(first), len(second)))
