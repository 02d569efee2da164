"""Data of any known format as token ids and labels, the way trl's ``SFTTrainer`` takes them."""

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
_CHUNK = 10_000  # rows that are held as Python lists at a time


@dataclass(frozen=True, kw_only=True)
class PreparedRows:
    """What a task makes of a data set.

    Attributes:
        dataset: rows as the task's collator takes them.
        facts: about the data, for the record.
        lost: what became of rows that are not trained on as they stand, with their number.
        total: rows that there were.
        unused: columns that nothing is made of.
    """

    dataset: Dataset
    facts: Mapping[str, Any]
    lost: Mapping[str, int] = field(default_factory=dict)
    total: int
    unused: tuple[str, ...] = ()


@dataclass(kw_only=True)
class _Tally:
    """What has become of the rows so far."""

    tokens: int = 0
    trained_tokens: int = 0
    truncated: int = 0
    dropped: int = 0
    empty: int = 0

    def facts(self) -> dict[str, Any]:
        """Of tokens and rows, for the record."""
        return {
            "tokens": self.tokens,
            "trained_tokens": self.trained_tokens,
            "truncated_rows": self.truncated,
            "dropped_rows": self.dropped,
            "empty_rows": self.empty,
        }

    def lost(self, most: int) -> dict[str, int]:
        """What rows have lost, in words; ``most`` is the length of a row."""
        return {
            f"cut to {most} tokens (--max-length)": self.truncated,
            "left out, since nothing to train is left of them within --max-length": self.dropped,
            "left out, since they hold no text or no answer": self.empty,
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

    Plain text trains on every token. The other formats train on their answers (completion, output, the assistant's
    turns) and on the token that ends them; rows that are too long lose their right end.

    Args:
        dataset: rows of one of the formats of ``DataFormat``.
        tokenizer: the model's tokenizer; it need not have special tokens.
        max_length: tokens in a row at most, 2 or more.
        answers_only: take the loss on answers only; plain text has none and ignores this.
        packing: join rows. By default plain text is joined, in blocks of exactly ``max_length``, and answers are not;
            on request whole rows of them are.
        prompt: text put before every row, within ``max_length``; no loss is taken on it.
        bos: what begins with the beginning-of-sequence token (``BOS_CHOICES``); a chat template writes its own.
        most_rows: prepared rows after which nothing more is read; None reads all.

    Returns:
        Rows of ``input_ids`` and, where not every token is trained, ``labels`` (-100: no loss here). ``SFTTrainer``
        takes them as they are: set its ``packing`` to False, and its ``max_length`` to None. Among the facts are the
        tokens, and those that a loss is taken on (the first token of a row never is).

    Raises:
        ValueError: a wrong ``max_length``, columns or values that are not understood, or nothing left to train on.
    """
    if max_length < 2:
        raise ValueError(f"max_length={max_length} leaves nothing to predict. Give 2 or more.")
    columns, opening, tally = columns_of(dataset), opening_ids(tokenizer, bos), _Tally()
    before = RowPrompt.of(prompt, tokenizer, max_length, opening) if prompt else None
    most, max_length = max_length, max_length - (len(before.prompt) if before else 0)
    if max_length <= len(opening):
        raise ValueError(f"max_length={most} leaves no room behind the {len(opening)} tokens that open a row.")
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
    """Documents in blocks, each opened as its tokenizer opens a text, and what opens every block."""
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
    """Choose what writes a row (with its number) as a passage, or as None where it is empty."""
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
    """What writes prompt and completion: both are text, or both are lists of turns, as in trl."""
    chat = cache(partial(chat_writer, tokenizer, answers_only=answers_only))
    as_text = Columns(format=DataFormat.PROMPT_COMPLETION, needed=("prompt", "completion"))

    def write(row: RawRow, number: int) -> Passage | None:
        are_turns = [isinstance(row[name], list) for name in as_text.needed if row[name] is not None]
        if not any(are_turns):
            refuse_columns(row, as_text.refused, as_text, number)
            return prompt_completion_passage(row, number)
        if not all(are_turns):
            raise ValueError(
                f"Row {number}: one of 'prompt' and 'completion' is a conversation, and the other is not. Write both "
                "as text, or both as lists of turns."
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
    """Cut rows to ``max_length`` and leave out those of which nothing to train is left."""
    for row in rows:
        cut = row[:max_length]
        if not cut.num_trained:
            tally.dropped += 1
            continue
        tally.truncated += len(cut) < len(row)
        yield cut


def _collect(rows: Iterator[EncodedRow], tally: _Tally, *, answers_only: bool, labels: bool) -> Dataset:
    """Gather rows in a data set; the labels stay out where they would repeat the token ids."""
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
        raise ValueError(
            "The data has nothing to train on: all of its rows are empty, or have no answer. Give rows with text."
        )
    if answers_only:
        raise ValueError(
            f"Every answer is masked out: none of the {tally.dropped} rows has a token of an answer left within the "
            "maximal length. Allow longer rows with --max-length, or train on all tokens with --no-answers-only."
        )
    raise ValueError("The data has nothing to train on: no row has two tokens. Give longer text.")


# The formats that data comes in, told by the columns.

RawRow = dict[str, Any]

_BATCH = 1000
_BATCH_OF_STREAM = 100  # as little as pays is read beyond what is needed


class DataFormat(Enum):
    """What one row of the data is."""

    MESSAGES = "messages"
    PROMPT_COMPLETION = "prompt_completion"
    INSTRUCTION = "instruction"
    SOURCE_TARGET = "source_target"
    TEXT = "text"


@dataclass(frozen=True, kw_only=True)
class Columns:
    """The columns that make up a format."""

    format: DataFormat
    needed: tuple[str, ...]
    optional: tuple[str, ...] = ()

    def __str__(self) -> str:
        return " + ".join(self.needed)

    @property
    def refused(self) -> tuple[str, ...]:
        """Columns that would change what a row means, and that the format has no place for."""
        known = self.needed + self.optional
        return () if self.format is DataFormat.TEXT else tuple(name for name in _MEANINGFUL if name not in known)

    def unused(self, dataset: Dataset | RowsInOrder) -> tuple[str, ...]:
        """Columns of ``dataset`` that nothing is made of."""
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
"""In order of preference: Alpaca's own data, for one, carries a ``text`` column beside its instructions."""


class RowsInOrder(Protocol):
    """Rows that are read one after the other, in place of a data set."""

    column_names: list[str]

    def __iter__(self) -> Iterator[RawRow]: ...


def columns_of(dataset: Dataset | RowsInOrder, known: tuple[Columns, ...] = KNOWN_COLUMNS) -> Columns:
    """Find the columns of ``dataset`` that are used, of the ``known`` ones.

    Raises:
        ValueError: the columns make up no known format.
    """
    for columns in known:
        if set(columns.needed) <= set(dataset.column_names):
            return columns
    raise ValueError(
        f"The data has the columns {', '.join(dataset.column_names) or '(none)'}, which make up no known format. "
        f"Understood are: {'; '.join(map(str, known))}. Rename columns with --columns, such as "
        f"{known[0].needed[0]}={(*dataset.column_names, 'NAME')[0]}."
    )


def numbered_batches(dataset: Dataset | RowsInOrder, columns: Columns) -> Iterator[list[tuple[int, RawRow]]]:
    """Yield the rows of ``dataset`` in batches, each row with its number (from 1) and the used columns only.

    Raises:
        ValueError: a row has something in a column that the format has no place for.
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
    """Make sure that row ``number`` has nothing in columns that its format has no place for.

    Raises:
        ValueError: it has.
    """
    for name in names:
        if row.get(name):
            raise ValueError(
                f"Row {number}: the column {name!r} says more than {columns} can hold. Write the row as a "
                "conversation in a column 'messages', or remove the column."
            )
