"""A prompt before every row."""

from __future__ import annotations

import pytest
from datasets import Dataset
from tests.checkpoints import tiny_tokenizer

from loraprune.data.formats import prepare_dataset
from loraprune.data.tokenize import IGNORED_LABEL, EncodedRow, RowPrompt

PROMPT = "Be small."
TEXTS = Dataset.from_dict({"text": ["one two three four five six seven"] * 6})
ANSWERS = Dataset.from_dict({"instruction": ["Count."] * 3, "output": ["one two three"] * 3})


def test_the_prompt_stands_behind_the_opening_token_and_is_not_trained():
    prompt = RowPrompt(prompt=[7, 8], opening=[1])
    row = prompt.before(EncodedRow(input_ids=[1, 4, 5], labels=[1, 4, 5]))
    assert row.input_ids == [1, 7, 8, 4, 5]
    assert row.labels == [IGNORED_LABEL] * 3 + [4, 5]


def test_a_row_without_an_opening_token_keeps_its_first_token_untrained():
    prompt = RowPrompt(prompt=[7, 8], opening=[])
    row = prompt.before(EncodedRow(input_ids=[4, 5], labels=[4, 5]))
    assert row.input_ids == [7, 8, 4, 5]
    assert row.labels == [IGNORED_LABEL] * 3 + [5]


@pytest.mark.parametrize("rows", [TEXTS, ANSWERS], ids=["text", "answers"])
def test_rows_with_a_prompt_train_on_what_they_train_on_without(rows):
    tokenizer = tiny_tokenizer()
    (ids,) = tokenizer([f"{PROMPT}\n\n"], add_special_tokens=False)["input_ids"]
    length = 200
    with_prompt = prepare_dataset(rows, tokenizer, max_length=length + len(ids), prompt=PROMPT)
    without = prepare_dataset(rows, tokenizer, max_length=length)
    assert with_prompt.facts["trained_tokens"] == without.facts["trained_tokens"]
    for row, plain in zip(with_prompt.dataset, without.dataset, strict=True):
        assert row["input_ids"][-20:] == plain["input_ids"][-20:]
        assert len(row["input_ids"]) == len(plain["input_ids"]) + len(ids)
        labels = plain.get("labels", plain["input_ids"])
        assert [x for x in row["labels"] if x != IGNORED_LABEL] == [x for x in labels[1:] if x != IGNORED_LABEL]


def test_rows_stay_within_the_maximal_length():
    rows = prepare_dataset(TEXTS, tiny_tokenizer(), max_length=40, prompt=PROMPT).dataset
    assert {len(row["input_ids"]) for row in rows} == {40}


def test_a_prompt_that_leaves_no_room_is_refused():
    with pytest.raises(ValueError, match=r"takes \d+ of 8 tokens \(--max-length\)"):
        prepare_dataset(TEXTS, tiny_tokenizer(), max_length=8, prompt=PROMPT)
