from __future__ import annotations

from datasets import Dataset
from tests.tasks.models import byte_tokenizer

from loraprune.data.formats import PreparedRows
from loraprune.data.pairs import prepare_pairs


def texts(rows: PreparedRows) -> list[tuple[str, str]]:
    tokenizer = byte_tokenizer()
    columns = zip(rows.dataset["input_ids"], rows.dataset["labels"], strict=True)
    return [(tokenizer.decode(source), tokenizer.decode(target)) for source, target in columns]


def prepared(columns: dict[str, list[str | None]], max_length: int = 16) -> PreparedRows:
    return prepare_pairs(Dataset.from_dict(columns), byte_tokenizer(), max_length=max_length)


def test_sources_and_targets_end_with_one_end_of_sequence_token() -> None:
    rows = prepared({"source": ["ab"], "target": ["cd"]})
    assert texts(rows) == [("ab</s>", "cd</s>")]
    assert rows.facts == {"format": "source_target", "rows": 1, "tokens": 3, "trained_tokens": 3}


def test_the_input_of_an_instruction_follows_on_its_own_line() -> None:
    rows = prepared({"instruction": ["turn", "stop"], "input": ["ab", ""], "output": ["ba", "ok"]})
    assert texts(rows) == [("turn\nab</s>", "ba</s>"), ("stop</s>", "ok</s>")]


def test_long_rows_lose_their_right_end_and_are_counted() -> None:
    rows = prepared({"source": ["abcdef", "ab"], "target": ["ab", "abcdef"]}, max_length=4)
    assert texts(rows) == [("abc</s>", "ab</s>"), ("ab</s>", "abcd")]
    assert rows.lost["cut to --max-length"] == 2


def test_rows_without_a_source_or_a_target_are_left_out() -> None:
    rows = prepared({"prompt": ["ab", " ", "ab"], "completion": ["c", "c", None]})
    assert texts(rows) == [("ab</s>", "c</s>")]
    assert rows.lost["left out, because they hold no source or no target"] == 2
    assert rows.total == 3
