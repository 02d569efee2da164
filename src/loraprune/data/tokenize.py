"""Rows as token ids, with labels that train on the answers: passages, prompts, packing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from loraprune.data.encoding import closed, opening_ids, tokenize

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


def encode_documents(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> list[EncodedRow]:
    """Token ids of whole documents, all trained, each closed by the end-of-sequence token."""
    documents = [closed(tokenizer, token_ids) for token_ids in tokenize(tokenizer, texts)]
    return [EncodedRow(input_ids=token_ids, labels=token_ids) for token_ids in documents]


def opened_row(opening: list[int], row: EncodedRow, *, trained: bool = False) -> EncodedRow:
    """Put ``opening`` before a row that does not begin with it; a loss is taken on it only if it is ``trained``."""
    is_open = row.input_ids[: len(opening)] == opening
    labels = opening if trained else [IGNORED_LABEL] * len(opening)
    return row if is_open else EncodedRow(input_ids=opening, labels=labels) + row


def encode_passages(
    passages: Sequence[Passage], tokenizer: PreTrainedTokenizerBase, *, answers_only: bool, bos: str = "auto"
) -> list[EncodedRow]:
    """Token ids of each passage, with labels for its answers or, without ``answers_only``, for all of it.

    An answer that runs to the end of its passage includes the end-of-sequence token, so that the model learns to stop.
    A passage that is complete gets no more tokens, unless ``bos`` is ``always``.
    """
    opening = opening_ids(tokenizer, bos)
    token_ids = tokenize(tokenizer, [passage.text for passage in passages])
    masks = _answer_masks(passages, token_ids, tokenizer) if answers_only else [[True] * len(ids) for ids in token_ids]
    rows = []
    for passage, ids, mask in zip(passages, token_ids, masks, strict=True):
        if not passage.is_complete:
            end = closed(tokenizer, ids)[len(ids) :]
            ids, mask = ids + end, mask + [True] * len(end)
        labels = [token if trained else IGNORED_LABEL for token, trained in zip(ids, mask, strict=True)]
        row = EncodedRow(input_ids=ids, labels=labels)
        rows.append(row if passage.is_complete and bos != "always" else opened_row(opening, row))
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


# Rows joined to longer ones, so that no computation goes to padding.


def pack_documents(documents: Iterable[EncodedRow], max_length: int) -> Iterator[EncodedRow]:
    """Join documents and cut them in blocks of exactly ``max_length`` tokens.

    The tail that fills no block is dropped, unless it is all there is.
    """
    rest = EncodedRow(input_ids=[], labels=[])
    is_first = True
    for document in documents:
        joined = rest + document
        end = len(joined) - len(joined) % max_length
        for start in range(0, end, max_length):
            yield joined[start : start + max_length]
            is_first = False
        rest = joined[end:]
    if is_first and len(rest):
        yield rest


def pack_rows(rows: Iterable[EncodedRow], max_length: int) -> Iterator[EncodedRow]:
    """Join whole rows, in their order, as long as they fit in ``max_length`` tokens; no row is cut.

    The rows of a block see each other, as documents do in packed text.
    """
    block: EncodedRow | None = None
    for row in rows:
        if block is not None and len(block) + len(row) <= max_length:
            block = block + row
        else:
            if block is not None:
                yield block
            block = row
    if block is not None:
        yield block


# Text whose answers are marked, and the formats of a question and an answer written as such text.

_TASK = "### Instruction:\n{instruction}\n\n"
_INPUT = "### Input:\n{input}\n\n"
_RESPONSE = "### Response:\n"


@dataclass(frozen=True, kw_only=True)
class Passage:
    """One row as text, with the parts of it that are answers.

    Attributes:
        text: the whole row.
        answers: where the answers stand, as ``(start, end)`` in characters, in order and without overlap.
        is_complete: whether ``text`` already holds the tokens that open and close a sequence, as what a chat
            template writes does. The tokenizer's own are added otherwise.
    """

    text: str
    answers: tuple[tuple[int, int], ...]
    is_complete: bool


def text_value(row: Mapping[str, Any], column: str, number: int) -> str:
    """Text of ``column``, empty where the row has none.

    Raises:
        ValueError: the value is no text; the message names row ``number``.
    """
    value = row.get(column)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise ValueError(
            f"Row {number}: the column {column!r} holds a {type(value).__name__} where text is needed. "
            "Write it as text; a conversation belongs in a column 'messages'."
        )
    return value


def instruction_prompt(instruction: str, input: str = "") -> str:
    """Write an instruction, and the input it is about, as the prompt that tuning used."""
    task = _TASK.format(instruction=instruction.strip())
    return task + (_INPUT.format(input=input.strip()) if input.strip() else "") + _RESPONSE


def _passage(prompt: str, answer: str) -> Passage | None:
    if not answer.strip():
        return None
    text = prompt + answer
    return Passage(text=text, answers=((len(prompt), len(text)),), is_complete=False)


def prompt_completion_passage(row: Mapping[str, Any], number: int) -> Passage | None:
    """Put the completion right behind the prompt; None without a completion."""
    return _passage(text_value(row, "prompt", number), text_value(row, "completion", number))


def instruction_passage(row: Mapping[str, Any], number: int) -> Passage | None:
    """Write the output behind the prompt made of instruction and input; None without a task or an output.

    A system text and earlier tasks with their answers (``history``) come before it; no loss is taken on them.
    """
    instruction, task_input = text_value(row, "instruction", number), text_value(row, "input", number)
    if not instruction.strip() and not task_input.strip():
        return None
    answer = "output" if "output" in row else "response"  # as in LaMini
    system = text_value(row, "system", number).strip()
    before = [system, *(instruction_prompt(task) + reply.strip() for task, reply in _history(row, number))]
    prompt = "".join(f"{text}\n\n" for text in before if text) + instruction_prompt(instruction, task_input)
    return _passage(prompt, text_value(row, answer, number))


def _history(row: Mapping[str, Any], number: int) -> list[tuple[str, str]]:
    history = row.get("history") or []
    pairs = [tuple(pair) if isinstance(pair, list) else pair for pair in history] if isinstance(history, list) else None
    if pairs is None or not all(
        isinstance(pair, tuple) and len(pair) == 2 and all(isinstance(text, str) for text in pair) for pair in pairs
    ):
        raise ValueError(f"Row {number}: the column 'history' is no list of pairs, [[task, answer], …]. Write it so.")
    return pairs


# A text before every row, which the model reads and is not trained to write.


@dataclass(frozen=True, kw_only=True)
class RowPrompt:
    """A prompt as tokens.

    Attributes:
        prompt: token ids.
        opening: what the tokenizer opens a sequence with; in rows that have it, it stays in front.
    """

    prompt: list[int]
    opening: list[int]

    @classmethod
    def of(
        cls, text: str, tokenizer: PreTrainedTokenizerBase, max_length: int, opening: list[int] | None = None
    ) -> RowPrompt:
        """Tokenize a prompt; an empty line parts it from the row.

        Raises:
            ValueError: it leaves no room for a row.
        """
        (prompt,) = tokenize(tokenizer, [f"{text.strip()}\n\n"])
        if max_length - len(prompt) < 2:
            raise ValueError(
                f"The prompt before each row takes {len(prompt)} of {max_length} tokens (--max-length), which leaves "
                "nothing to predict. Shorten it, or allow longer rows."
            )
        return cls(prompt=prompt, opening=opening_ids(tokenizer) if opening is None else opening)

    def before(self, row: EncodedRow) -> EncodedRow:
        """Put the prompt before a row."""
        split = len(self.opening) if row.input_ids[: len(self.opening)] == self.opening else 0
        prompt = EncodedRow(input_ids=self.prompt, labels=[IGNORED_LABEL] * len(self.prompt))
        # What follows the prompt was the row's first token, which nothing predicts; it stays so.
        return _untrained(row[:split]) + prompt + row[split:] if split else prompt + _first_untrained(row)


def _untrained(row: EncodedRow) -> EncodedRow:
    return EncodedRow(input_ids=row.input_ids, labels=[IGNORED_LABEL] * len(row))


def _first_untrained(row: EncodedRow) -> EncodedRow:
    return _untrained(row[:1]) + row[1:]
