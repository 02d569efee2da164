"""Texts (or pairs of texts) and their labels as token ids for a text classifier."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from datasets import Dataset

from loraprune.data.formats import PreparedRows
from loraprune.data.labels import LABEL_COLUMNS, ModelLabels, find_column, label_numbers
from loraprune.data.tokenize import text_value

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

TEXT_COLUMNS = ("text", "sentence", "sentence1", "premise")
_PAIR_COLUMNS = ("text_pair", "sentence2", "hypothesis")
_NEEDED = "the columns 'text' (or 'sentence'; for pairs, also 'text_pair' or 'sentence2') and 'label'"


def prepare_sentences(
    dataset: Dataset, tokenizer: PreTrainedTokenizerBase, config: PretrainedConfig, *, max_length: int
) -> PreparedRows:
    """Tokenize for text classification, with the special tokens that the tokenizer adds by default.

    Raises:
        ValueError: columns are missing, a value is not text or not a label of the model, or all texts are empty.
    """
    text, label = find_column(dataset, TEXT_COLUMNS), find_column(dataset, LABEL_COLUMNS)
    if text is None or label is None:
        found = ", ".join(dataset.column_names) or "(none)"
        raise ValueError(
            f"A text classifier needs {_NEEDED}, but the data has the columns {found}. Rename columns with --columns."
        )
    pair = find_column(dataset, _PAIR_COLUMNS)
    numbers = label_numbers(dataset, label, ModelLabels.of(config))
    used = [name for name in (text, pair, label) if name is not None]
    columns: dict[str, list[Any]] = {"labels": []}
    lost = {"cut to --max-length": 0, "left out, because they hold no text": 0}
    for number, row in enumerate(dataset.select_columns(used).with_format(None), start=1):
        first = text_value(row, text, number)
        second = text_value(row, pair, number) if pair is not None else ""
        if not (first + second).strip():
            lost["left out, because they hold no text"] += 1
            continue
        texts = (first, second) if pair is not None else (first,)
        encoded = tokenizer(*texts, truncation=True, max_length=max_length, verbose=False)
        if len(encoded["input_ids"]) == max_length:
            whole = tokenizer(*texts, verbose=False, return_attention_mask=False)
            lost["cut to --max-length"] += len(whole["input_ids"]) > max_length
        columns["labels"].append(numbers[row[label]])
        for name in ("input_ids", "token_type_ids"):
            if name in encoded:
                columns.setdefault(name, []).append(encoded[name])
    if not columns["labels"]:
        raise ValueError("The data has nothing to train on: all texts are empty. Give rows with text.")
    return PreparedRows(
        dataset=Dataset.from_dict(columns),
        facts={
            "format": "text and label" if pair is None else "two texts and label",
            "rows": len(columns["labels"]),
            "tokens": sum(map(len, columns["input_ids"])),
            "labels": len(set(columns["labels"])),
        },
        lost=lost,
        total=len(dataset),
    )
