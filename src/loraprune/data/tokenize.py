"""Rows as token ids with labels on the answers: passages, prompts, packing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from loraprune.data.encoding import closed, opening_ids, tokenize

IGNORED_LABEL = -100
"""Label of a token without loss."""


@dataclass(frozen=True, kw_only=True)
class EncodedRow:
    """Token ids and labels: each label is the id to predict, or ``IGNORED_LABEL``."""

    input_ids: list[int]
    labels: list[int]

    @property
    def num_trained(self) -> int:
        """Number of tokens with a loss. The first token of a row is never predicted, whatever its label."""
        return sum(label != IGNORED_LABEL for label in self.labels[1:])

    def __len__(self) -> int:
        return len(self.input_ids)

    def __add__(self, other: EncodedRow) -> EncodedRow:
        return EncodedRow(input_ids=self.input_ids + other.input_ids, labels=self.labels + other.labels)

    def __getitem__(self, part: slice) -> EncodedRow:
        return EncodedRow(input_ids=self.input_ids[part], labels=self.labels[part])


def encode_documents(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> list[EncodedRow]:
    """Encode whole documents: the loss is on all tokens, and an end-of-sequence token closes each document."""
    documents = [closed(tokenizer, token_ids) for token_ids in tokenize(tokenizer, texts)]
    return [EncodedRow(input_ids=token_ids, labels=token_ids) for token_ids in documents]


def opened_row(opening: list[int], row: EncodedRow, *, trained: bool = False) -> EncodedRow:
    """Prepend ``opening`` to a row that does not begin with it; it has a loss only if ``trained``."""
    is_open = row.input_ids[: len(opening)] == opening
    labels = opening if trained else [IGNORED_LABEL] * len(opening)
    return row if is_open else EncodedRow(input_ids=opening, labels=labels) + row


def encode_passages(
    passages: Sequence[Passage], tokenizer: PreTrainedTokenizerBase, *, answers_only: bool, bos: str = "auto"
) -> list[EncodedRow]:
    """Encode passages with labels on the answers or, without ``answers_only``, on all tokens.

    An answer at the end of its passage includes the end-of-sequence token, so that the model learns to stop. A
    complete passage gets no more tokens, unless ``bos`` is ``always``.
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

    The text before a boundary is tokenized alone; the boundary is where its tokens first differ from those of the
    whole text. A token that spans the start of an answer therefore belongs to it, as in trl; a token that spans its
    end does not. Offsets would be cheaper, but byte-level tokenizers trim spaces from them, and slow tokenizers have
    none.
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
    """Number of tokens that two sequences share at their start."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(first), len(second)))


# Packing: rows are joined so that no computation is spent on padding.


def pack_documents(documents: Iterable[EncodedRow], max_length: int) -> Iterator[EncodedRow]:
    """Join documents and cut them into blocks of exactly ``max_length`` tokens.

    The incomplete last block is dropped, unless it is the only one.
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
    """Join whole rows, in order, into blocks of at most ``max_length`` tokens; no row is cut.

    The rows of a block attend to each other, as documents do in packed text.
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


# Passages: text with marked answers, and the formats written as passages.

_TASK = "### Instruction:\n{instruction}\n\n"
_INPUT = "### Input:\n{input}\n\n"
_RESPONSE = "### Response:\n"


@dataclass(frozen=True, kw_only=True)
class Passage:
    """One row as text, with the positions of its answers.

    Attributes:
        text: text of the whole row.
        answers: positions of the answers as ``(start, end)`` in characters, in order and without overlap.
        is_complete: whether ``text`` already has the tokens that open and close a sequence, as chat templates write
            them. Otherwise, those of the tokenizer are added.
    """

    text: str
    answers: tuple[tuple[int, int], ...]
    is_complete: bool


def text_value(row: Mapping[str, Any], column: str, number: int) -> str:
    """Return the text of ``column``; empty if the row has none.

    Raises:
        ValueError: the value is not text; the message names row ``number``.
    """
    value = row.get(column)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise ValueError(
            f"Row {number}: the column {column!r} holds a {type(value).__name__}; it must be text. "
            "A conversation belongs in a column 'messages'."
        )
    return value


def instruction_prompt(instruction: str, input: str = "") -> str:
    """Write an instruction and its input as the prompt that tuning uses."""
    task = _TASK.format(instruction=instruction.strip())
    return task + (_INPUT.format(input=input.strip()) if input.strip() else "") + _RESPONSE


def _passage(prompt: str, answer: str) -> Passage | None:
    if not answer.strip():
        return None
    text = prompt + answer
    return Passage(text=text, answers=((len(prompt), len(text)),), is_complete=False)


def prompt_completion_passage(row: Mapping[str, Any], number: int) -> Passage | None:
    """Append the completion to the prompt; None without a completion."""
    return _passage(text_value(row, "prompt", number), text_value(row, "completion", number))


def instruction_passage(row: Mapping[str, Any], number: int) -> Passage | None:
    """Write instruction and input as a prompt, followed by the output; None without a task or an output.

    The system text and earlier tasks with their answers (``history``) come first, without loss.
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
        raise ValueError(f"Row {number}: the column 'history' must be a list of pairs, [[task, answer], …].")
    return pairs


# A prompt before every row, without loss.


@dataclass(frozen=True, kw_only=True)
class RowPrompt:
    """A prompt as tokens.

    Attributes:
        prompt: token ids of the prompt.
        opening: opening tokens of a sequence; they stay in front of the prompt in rows that begin with them.
    """

    prompt: list[int]
    opening: list[int]

    @classmethod
    def of(
        cls, text: str, tokenizer: PreTrainedTokenizerBase, max_length: int, opening: list[int] | None = None
    ) -> RowPrompt:
        """Tokenize a prompt; an empty line separates it from the row.

        Raises:
            ValueError: the prompt leaves no room for a row.
        """
        (prompt,) = tokenize(tokenizer, [f"{text.strip()}\n\n"])
        if max_length - len(prompt) < 2:
            raise ValueError(
                f"The prompt before each row takes {len(prompt)} of {max_length} tokens (--max-length), which leaves "
                "nothing to predict. Shorten the prompt, or allow longer rows."
            )
        return cls(prompt=prompt, opening=opening_ids(tokenizer) if opening is None else opening)

    def before(self, row: EncodedRow) -> EncodedRow:
        """Prepend the prompt to a row."""
        split = len(self.opening) if row.input_ids[: len(self.opening)] == self.opening else 0
        prompt = EncodedRow(input_ids=self.prompt, labels=[IGNORED_LABEL] * len(self.prompt))
        # The row's first token had no loss, and still has none after the prompt.
        return _untrained(row[:split]) + prompt + row[split:] if split else prompt + _first_untrained(row)


def _untrained(row: EncodedRow) -> EncodedRow:
    return EncodedRow(input_ids=row.input_ids, labels=[IGNORED_LABEL] * len(row))


def _first_untrained(row: EncodedRow) -> EncodedRow:
    return _untrained(row[:1]) + row[1:]
