"""Source and target texts as token ids for an encoder–decoder model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from datasets import Dataset

from loraprune.data.encoding import closed
from loraprune.data.formats import Columns, DataFormat, PreparedRows, RawRow, columns_of, numbered_batches
from loraprune.data.tokenize import text_value

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PAIR_COLUMNS = (
    Columns(format=DataFormat.SOURCE_TARGET, needed=("source", "target")),
    Columns(format=DataFormat.PROMPT_COMPLETION, needed=("prompt", "completion")),
    Columns(format=DataFormat.INSTRUCTION, needed=("instruction", "output"), optional=("input",)),
)
_NEEDED = "; or ".join(" + ".join(repr(name) for name in columns.needed) for columns in PAIR_COLUMNS)


def _texts(row: RawRow, columns: Columns, number: int) -> tuple[str, str]:
    """Return source and target of a row; the input of an instruction follows on its own line."""
    source, target = (text_value(row, name, number) for name in columns.needed)
    extra = text_value(row, "input", number) if columns.optional else ""
    return (f"{source}\n{extra}" if extra.strip() else source), target


def _filled(dataset: Dataset, columns: Columns, lost: dict[str, int]) -> Iterator[tuple[str, str]]:
    for batch in numbered_batches(dataset, columns):
        for number, row in batch:
            source, target = _texts(row, columns, number)
            if source.strip() and target.strip():
                yield source, target
            else:
                lost["left out, because they hold no source or no target"] += 1


def prepare_pairs(dataset: Dataset, tokenizer: PreTrainedTokenizerBase, *, max_length: int) -> PreparedRows:
    """Tokenize sources and targets, each cut to ``max_length`` tokens; a target ends with the end-of-sequence token.

    Raises:
        ValueError: columns are missing, a value is not text, or no row has both a source and a target.
    """
    columns = columns_of(dataset, PAIR_COLUMNS)
    lost = {"cut to --max-length": 0, "left out, because they hold no source or no target": 0}
    input_ids, labels = [], []
    for source, target in _filled(dataset, columns, lost):
        source_ids = tokenizer(source, verbose=False)["input_ids"]
        target_ids = closed(tokenizer, tokenizer(text_target=target, verbose=False)["input_ids"])
        lost["cut to --max-length"] += max(len(source_ids), len(target_ids)) > max_length
        if len(source_ids) > max_length:
            source_ids = tokenizer(source, truncation=True, max_length=max_length, verbose=False)["input_ids"]
        input_ids.append(source_ids)
        labels.append(target_ids[:max_length])
    if not input_ids:
        raise ValueError(
            "The data has nothing to train on: no row has both a source and a target. Give rows with both."
        )
    return PreparedRows(
        dataset=Dataset.from_dict({"input_ids": input_ids, "labels": labels}),
        facts={
            "format": columns.format.value,
            "rows": len(input_ids),
            "tokens": sum(map(len, input_ids)),
            "trained_tokens": sum(map(len, labels)),
        },
        lost=lost,
        total=len(dataset),
        unused=columns.unused(dataset),
    )
