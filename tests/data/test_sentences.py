from __future__ import annotations

from datasets import Dataset
from tests.tasks.models import tiny_bert, word_tokenizer

from loraprune.data.formats import PreparedRows
from loraprune.data.sentences import prepare_sentences

CONFIG = tiny_bert().config


def prepared(rows: Dataset, max_length: int = 32) -> PreparedRows:
    return prepare_sentences(rows, word_tokenizer(), CONFIG, max_length=max_length)


def test_texts_are_opened_and_closed_as_the_tokenizer_does_it() -> None:
    rows = prepared(Dataset.from_dict({"sentence": ["good bird", "old"], "label": [1, 0]}))
    tokenizer = word_tokenizer()
    assert [tokenizer.decode(ids) for ids in rows.dataset["input_ids"]] == ["[CLS] good bird [SEP]", "[CLS] old [SEP]"]
    assert rows.dataset["labels"][:] == [1, 0]
    assert rows.facts == {"format": "text and label", "rows": 2, "tokens": 7, "labels": 2}


def test_pairs_are_told_apart_by_their_types() -> None:
    rows = prepared(Dataset.from_dict({"text": ["good bird"], "text_pair": ["old mill"], "label": [1]}))
    assert word_tokenizer().decode(rows.dataset["input_ids"][0]) == "[CLS] good bird [SEP] old mill [SEP]"
    assert rows.dataset["token_type_ids"][0] == [0, 0, 0, 0, 1, 1, 1]


def test_rows_that_are_cut_and_rows_without_text_are_counted() -> None:
    texts = ["good " * 9, "good " * 6, "good " * 5, " ", None]
    rows = prepared(Dataset.from_dict({"text": texts, "label": [0] * 5}), max_length=8)
    assert [len(ids) for ids in rows.dataset["input_ids"]] == [8, 8, 7]
    assert rows.lost == {"cut to --max-length": 1, "left out, because they hold no text": 2}
    assert rows.total == 5
