"""Data of any known format as token ids and labels, in the form that trl's ``SFTTrainer`` takes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from functools import cache, partial
from itertools import islice
from typing import Any, Protocol

import datasets
from datasets import Dataset, Features, List, Value
from transformers import PreTrainedTokenizerBase

from loraprune.data.chat import (
    chat_writer,
    normalize_messages,
    prompt_and_completion,
    template_variables,
    with_system,
)
from loraprune.data.encoding import opening_ids, text_and_segment_opening
from loraprune.data.tokenize import (
    EncodedRow,
    Passage,
    RowPrompt,
    encode_documents,
    encode_passages,
    instruction_passage,
    opened_row,
    pack_documents,
    pack_rows,
    prompt_completion_passage,
    text_value,
)

_TOKEN_IDS = List(Value("int32"))
_CHUNK = 10_000  # rows held as Python lists at a time


@dataclass(frozen=True, kw_only=True)
class PreparedRows:
    """A dataset prepared for a task.

    Attributes:
        dataset: rows in the form that the task's collator takes.
        facts: facts about the data, for the record.
        lost: number of rows that were cut or left out, by reason.
        total: number of rows before any were left out.
        unused: columns that are not used.
    """

    dataset: Dataset
    facts: Mapping[str, Any]
    lost: Mapping[str, int] = field(default_factory=dict)
    total: int
    unused: tuple[str, ...] = ()


@dataclass(kw_only=True)
class _Tally:
    """Counts of tokens and rows so far."""

    tokens: int = 0
    trained_tokens: int = 0
    truncated: int = 0
    dropped: int = 0
    empty: int = 0

    def facts(self) -> dict[str, Any]:
        """Return the counts for the record."""
        return {
            "tokens": self.tokens,
            "trained_tokens": self.trained_tokens,
            "truncated_rows": self.truncated,
            "dropped_rows": self.dropped,
            "empty_rows": self.empty,
        }

    def lost(self, most: int) -> dict[str, int]:
        """Return the number of rows cut or left out, by reason; ``most`` is the maximum length of a row."""
        return {
            f"cut to {most} tokens (--max-length)": self.truncated,
            "left out, because nothing to train on fits within --max-length": self.dropped,
            "left out, because they hold no text or no answer": self.empty,
        }


def prepare_dataset(
    dataset: Dataset | RowsInOrder,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int,
    answers_only: bool = True,
    packing: bool | None = None,
    prompt: str | None = None,
    bos: str = "auto",
    most_rows: int | None = None,
) -> PreparedRows:
    """Tokenize ``dataset`` for causal language modeling, in rows of at most ``max_length`` tokens.

    Plain text trains on every token. The other formats train on their answers (completion, output, assistant turns)
    and on the token that ends an answer. Rows that are too long are cut at the end.

    Args:
        dataset: rows in one of the formats of ``DataFormat``.
        tokenizer: tokenizer of the model; it need not have special tokens.
        max_length: maximum number of tokens in a row, 2 or more.
        answers_only: compute the loss on answers only. Plain text has none and ignores this.
        packing: join rows. By default, plain text is joined in blocks of exactly ``max_length``, and other formats
            are not joined; True joins whole rows of them, too.
        prompt: text before every row, counted in ``max_length`` and without loss.
        bos: where the beginning-of-sequence token goes (``BOS_CHOICES``); a chat template writes its own.
        most_rows: maximum number of prepared rows; None prepares all.

    Returns:
        Rows of ``input_ids`` and, if some tokens are not trained on, ``labels`` (-100: no loss). ``SFTTrainer`` takes
        them with ``packing=False`` and ``max_length=None``. The facts count the tokens, and the tokens with a loss
        (the first token of a row has none).

    Raises:
        ValueError: ``max_length`` is too small, columns or values are not understood, or there is nothing to train
            on.
    """
    if max_length < 2:
        raise ValueError(f"max_length={max_length} leaves nothing to predict. Give 2 or more.")
    columns, opening, tally = columns_of(dataset), opening_ids(tokenizer, bos), _Tally()
    before = RowPrompt.of(prompt, tokenizer, max_length, opening) if prompt else None
    most, max_length = max_length, max_length - (len(before.prompt) if before else 0)
    if max_length <= len(opening):
        raise ValueError(f"max_length={most} leaves no room after the {len(opening)} tokens that open a row.")
    if columns.format is DataFormat.TEXT:
        answers_only = False
        rows = _encoded_documents(dataset, columns, tokenizer, tally)
        if packing is not False:
            rows, opening = _packed(rows, tokenizer, max_length, bos)
        rows = _fitting((opened_row(opening, row) for row in rows), max_length, tally)
    else:
        passages = _passages(dataset, columns, _passage_writer(columns, tokenizer, answers_only=answers_only), tally)
        rows = _fitting(_encoded(passages, tokenizer, answers_only=answers_only, bos=bos), max_length, tally)
        rows = pack_rows(rows, max_length) if packing else rows
    rows = islice(map(before.before, rows) if before else rows, most_rows)
    labels = answers_only or before is not None or len(opening) > 1
    found = _collect(rows, tally, answers_only=answers_only, labels=labels)
    return PreparedRows(
        dataset=found,
        facts={"format": columns.format.value, **tally.facts()},
        lost=tally.lost(most),
        total=len(found) + tally.dropped + tally.empty,
        unused=columns.unused(dataset),
    )


def _packed(
    rows: Iterable[EncodedRow], tokenizer: PreTrainedTokenizerBase, max_length: int, bos: str
) -> tuple[Iterator[EncodedRow], list[int]]:
    """Pack opened documents into blocks; return the blocks and the tokens that open each block."""
    of_text, opening = text_and_segment_opening(tokenizer, bos)
    opened = (opened_row(of_text, row, trained=True) for row in rows)
    return pack_documents(opened, max_length - len(opening)), opening


def _encoded(
    passages: Iterable[list[Passage]], tokenizer: PreTrainedTokenizerBase, *, answers_only: bool, bos: str
) -> Iterator[EncodedRow]:
    for some in passages:
        yield from encode_passages(some, tokenizer, answers_only=answers_only, bos=bos)


def _passage_writer(
    columns: Columns, tokenizer: PreTrainedTokenizerBase, *, answers_only: bool
) -> Callable[[RawRow, int], Passage | None]:
    """Choose the function that turns a row (and its number) into a passage, or into None if the row is empty."""
    if columns.format is DataFormat.PROMPT_COMPLETION:
        return _prompt_completion_writer(tokenizer, answers_only=answers_only)
    if columns.format is DataFormat.INSTRUCTION:
        return instruction_passage
    (column,) = columns.needed
    chat = chat_writer(tokenizer, answers_only=answers_only)
    return lambda row, number: chat.passage(
        with_system(normalize_messages(row[column], number), text_value(row, "system", number), number),
        number,
        template_variables(row, number),
    )


def _prompt_completion_writer(
    tokenizer: PreTrainedTokenizerBase, *, answers_only: bool
) -> Callable[[RawRow, int], Passage | None]:
    """Make the writer of prompt and completion: both are text, or both are lists of turns, as in trl."""
    chat = cache(partial(chat_writer, tokenizer, answers_only=answers_only))
    as_text = Columns(format=DataFormat.PROMPT_COMPLETION, needed=("prompt", "completion"))

    def write(row: RawRow, number: int) -> Passage | None:
        are_turns = [isinstance(row[name], list) for name in as_text.needed if row[name] is not None]
        if not any(are_turns):
            refuse_columns(row, as_text.refused, as_text, number)
            return prompt_completion_passage(row, number)
        if not all(are_turns):
            raise ValueError(
                f"Row {number}: only one of 'prompt' and 'completion' is a conversation. Write both as text, or both "
                "as lists of turns."
            )
        return chat().passage(
            with_system(prompt_and_completion(row, number, answers_only), text_value(row, "system", number), number),
            number,
            template_variables(row, number),
        )

    return write


def _encoded_documents(
    dataset: Dataset | RowsInOrder, columns: Columns, tokenizer: PreTrainedTokenizerBase, tally: _Tally
) -> Iterator[EncodedRow]:
    for batch in numbered_batches(dataset, columns):
        texts = [text_value(row, "text", number) for number, row in batch]
        filled = [text for text in texts if text.strip()]
        tally.empty += len(texts) - len(filled)
        yield from encode_documents(filled, tokenizer)


def _passages(
    dataset: Dataset | RowsInOrder, columns: Columns, writer: Callable[[RawRow, int], Passage | None], tally: _Tally
) -> Iterator[list[Passage]]:
    for batch in numbered_batches(dataset, columns):
        passages = [writer(row, number) for number, row in batch]
        filled = [passage for passage in passages if passage is not None]
        tally.empty += len(passages) - len(filled)
        yield filled


def _fitting(rows: Iterable[EncodedRow], max_length: int, tally: _Tally) -> Iterator[EncodedRow]:
    """Cut rows to ``max_length`` and leave out those with no token left to train on."""
    for row in rows:
        cut = row[:max_length]
        if not cut.num_trained:
            tally.dropped += 1
            continue
        tally.truncated += len(cut) < len(row)
        yield cut


def _collect(rows: Iterator[EncodedRow], tally: _Tally, *, answers_only: bool, labels: bool) -> Dataset:
    """Collect rows in a dataset; leave the labels out if they would repeat the token ids."""
    chunks = []
    names = ["input_ids", "labels"] if labels else ["input_ids"]
    features = Features(dict.fromkeys(names, _TOKEN_IDS))
    while chunk := list(islice(rows, _CHUNK)):
        tally.tokens += sum(map(len, chunk))
        tally.trained_tokens += sum(row.num_trained for row in chunk)
        table = {name: [getattr(row, name) for row in chunk] for name in names}
        chunks.append(Dataset.from_dict(table, features=features))
    if chunks:
        return datasets.concatenate_datasets(chunks)
    if not tally.dropped:
        raise ValueError("The data has nothing to train on: all rows are empty or have no answer. Give rows with text.")
    if answers_only:
        raise ValueError(
            f"Every answer is masked out: none of the {tally.dropped} rows has an answer token within the maximum "
            "length. Allow longer rows with --max-length, or train on all tokens with --no-answers-only."
        )
    raise ValueError("The data has nothing to train on: no row has two tokens. Give longer text.")


# Data formats, recognized by their columns.

RawRow = dict[str, Any]

_BATCH = 1000
_BATCH_OF_STREAM = 100  # small, to read few rows beyond those needed


class DataFormat(Enum):
    """Content of one row of the data."""

    MESSAGES = "messages"
    PROMPT_COMPLETION = "prompt_completion"
    INSTRUCTION = "instruction"
    SOURCE_TARGET = "source_target"
    TEXT = "text"


@dataclass(frozen=True, kw_only=True)
class Columns:
    """The columns of a format."""

    format: DataFormat
    needed: tuple[str, ...]
    optional: tuple[str, ...] = ()

    def __str__(self) -> str:
        return " + ".join(self.needed)

    @property
    def refused(self) -> tuple[str, ...]:
        """Columns that change the meaning of a row, and that the format cannot represent."""
        known = self.needed + self.optional
        return () if self.format is DataFormat.TEXT else tuple(name for name in _MEANINGFUL if name not in known)

    def unused(self, dataset: Dataset | RowsInOrder) -> tuple[str, ...]:
        """Return the columns of ``dataset`` that are not used."""
        known = self.needed + self.optional + self.refused
        return tuple(name for name in dataset.column_names if name not in known)


_MEANINGFUL = ("system", "history", "tools")
_OF_CHATS = ("system", "tools", "chat_template_kwargs")
_OF_INSTRUCTIONS = ("input", "system", "history")

KNOWN_COLUMNS = (
    Columns(format=DataFormat.MESSAGES, needed=("messages",), optional=_OF_CHATS),
    Columns(format=DataFormat.MESSAGES, needed=("conversations",), optional=_OF_CHATS),
    Columns(format=DataFormat.PROMPT_COMPLETION, needed=("prompt", "completion"), optional=_OF_CHATS),
    Columns(format=DataFormat.INSTRUCTION, needed=("instruction", "output"), optional=_OF_INSTRUCTIONS),
    Columns(format=DataFormat.INSTRUCTION, needed=("instruction", "response"), optional=_OF_INSTRUCTIONS),
    Columns(format=DataFormat.TEXT, needed=("text",)),
)
"""Known formats in order of preference. Alpaca's data, for example, has a ``text`` column beside its instructions."""


class RowsInOrder(Protocol):
    """Rows read in order, in place of a dataset."""

    column_names: list[str]

    def __iter__(self) -> Iterator[RawRow]: ...


def columns_of(dataset: Dataset | RowsInOrder, known: tuple[Columns, ...] = KNOWN_COLUMNS) -> Columns:
    """Return the first of the ``known`` formats whose columns ``dataset`` has.

    Raises:
        ValueError: no known format matches.
    """
    for columns in known:
        if set(columns.needed) <= set(dataset.column_names):
            return columns
    raise ValueError(
        f"The data has the columns {', '.join(dataset.column_names) or '(none)'}, which match no known format. "
        f"Known formats: {'; '.join(map(str, known))}. Rename columns with --columns, such as "
        f"{known[0].needed[0]}={(*dataset.column_names, 'NAME')[0]}."
    )


def numbered_batches(dataset: Dataset | RowsInOrder, columns: Columns) -> Iterator[list[tuple[int, RawRow]]]:
    """Yield the rows of ``dataset`` in batches, each row with its number (from 1) and only the used columns.

    Raises:
        ValueError: a row has a value in a column that the format cannot represent.
    """
    used = [name for name in columns.needed + columns.optional if name in dataset.column_names]
    refused = [name for name in columns.refused if name in dataset.column_names]
    names, number = used + refused, 0
    for rows in _batches(dataset, names):
        for position, row in enumerate(rows, start=number + 1):
            refuse_columns(row, refused, columns, position)
        yield [(position, {name: row[name] for name in used}) for position, row in enumerate(rows, start=number + 1)]
        number += len(rows)


def _batches(dataset: Dataset | RowsInOrder, names: list[str]) -> Iterator[list[RawRow]]:
    if isinstance(dataset, Dataset):
        for batch in dataset.select_columns(names).with_format(None).iter(batch_size=_BATCH):
            values = zip(*(batch[name] for name in names), strict=True)
            yield [dict(zip(names, row, strict=True)) for row in values]
        return
    rows = iter(dataset)
    while some := list(islice(rows, _BATCH_OF_STREAM)):
        yield some


def refuse_columns(row: RawRow, names: Iterable[str], columns: Columns, number: int) -> None:
    """Check that row ``number`` has no values in columns that its format cannot represent.

    Raises:
        ValueError: it has one.
    """
    for name in names:
        if row.get(name):
            raise ValueError(
                f"Row {number}: the format {columns} cannot represent the column {name!r}. Write the row as a "
                "conversation in a column 'messages', or remove the column."
            )
