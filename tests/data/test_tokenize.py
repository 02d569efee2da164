from __future__ import annotations

import pytest
from tests.data.conftest import MakeTokenizer
from transformers import PreTrainedTokenizerBase, tokenization_utils_base

from loraprune.data.tokenize import (
    IGNORED_LABEL,
    EncodedRow,
    Passage,
    encode_documents,
    encode_passages,
    opened_row,
    opening_ids,
    tokenize,
)


def passage(text: str, *answers: str, is_complete: bool = False) -> Passage:
    spans = tuple((text.index(answer), text.index(answer) + len(answer)) for answer in answers)
    return Passage(text=text, answers=spans, is_complete=is_complete)


def trained_text(row: EncodedRow, tokenizer: PreTrainedTokenizerBase) -> str:
    assert all(label in (IGNORED_LABEL, token) for token, label in zip(row.input_ids, row.labels, strict=True))
    return tokenizer.decode([label for label in row.labels if label != IGNORED_LABEL])


def encode(text: Passage, tokenizer: PreTrainedTokenizerBase, *, answers_only: bool = True) -> EncodedRow:
    (row,) = encode_passages([text], tokenizer, answers_only=answers_only)
    return row


def test_the_answer_and_its_end_are_trained(tokenizer: PreTrainedTokenizerBase) -> None:
    row = encode(passage("Q: x\nA: yes", "yes"), tokenizer)
    assert tokenizer.decode(row.input_ids) == "Q: x\nA: yes</s>"
    assert trained_text(row, tokenizer) == "yes</s>"
    assert row.num_trained == 4


def test_several_answers_are_trained_without_what_stands_between(tokenizer: PreTrainedTokenizerBase) -> None:
    row = encode(passage("q1 one q2 two.", "one", "two", is_complete=True), tokenizer)
    assert trained_text(row, tokenizer) == "onetwo"


def test_each_passage_of_a_batch_keeps_its_own_answers(tokenizer: PreTrainedTokenizerBase) -> None:
    batch = [passage("x yes", "yes"), passage("long question: no", "no"), passage("all", "all")]
    rows = encode_passages(batch, tokenizer, answers_only=True)
    assert [trained_text(row, tokenizer) for row in rows] == ["yes</s>", "no</s>", "all</s>"]


@pytest.mark.parametrize(("text", "trained"), [("Q:answer", ":answer</s>"), ("Q: answer", " answer</s>")])
def test_a_token_over_the_start_of_an_answer_is_trained(
    tokenizer: PreTrainedTokenizerBase, text: str, trained: str
) -> None:
    assert trained_text(encode(passage(text, "answer"), tokenizer), tokenizer) == trained


def test_an_answer_that_begins_with_a_space_is_trained_whole(tokenizer: PreTrainedTokenizerBase) -> None:
    assert trained_text(encode(passage("Q: answer", " answer"), tokenizer), tokenizer) == " answer</s>"


def test_a_token_over_the_end_of_an_answer_is_not_trained(tokenizer: PreTrainedTokenizerBase) -> None:
    row = encode(passage("q yes:all", "yes:", is_complete=True), tokenizer)
    assert trained_text(row, tokenizer) == "yes"


def test_characters_of_several_bytes_are_trained_whole(tokenizer: PreTrainedTokenizerBase) -> None:
    assert trained_text(encode(passage("é → ü", "ü"), tokenizer), tokenizer) == "ü</s>"


def test_without_answers_only_every_token_is_trained(make_tokenizer: MakeTokenizer) -> None:
    row = encode(passage("Q: yes", "yes"), make_tokenizer(adds_bos=True), answers_only=False)
    assert row.labels[1:] == row.input_ids[1:]
    assert len(row) == row.num_trained + 1 == 8


def test_the_opening_token_is_added_where_the_tokenizer_adds_one(make_tokenizer: MakeTokenizer) -> None:
    tokenizer = make_tokenizer(adds_bos=True)
    row = encode(passage("Q: yes", "yes"), tokenizer)
    assert row.input_ids[:-1] == tokenizer("Q: yes")["input_ids"]
    assert trained_text(row, tokenizer) == "yes</s>"
    assert opening_ids(make_tokenizer(bos=True)) == []
    assert opening_ids(make_tokenizer()) == []


def test_complete_passages_get_no_tokens_around_them(make_tokenizer: MakeTokenizer) -> None:
    tokenizer = make_tokenizer(adds_bos=True)
    row = encode(passage("<s>hi yes", "yes", is_complete=True), tokenizer)
    assert tokenizer.decode(row.input_ids) == "<s>hi yes"


def test_an_end_that_is_there_is_not_doubled(tokenizer: PreTrainedTokenizerBase) -> None:
    assert tokenizer.decode(encode(passage("Q: yes</s>", "yes</s>"), tokenizer).input_ids) == "Q: yes</s>"


def test_a_tokenizer_without_special_tokens_adds_none(make_tokenizer: MakeTokenizer) -> None:
    tokenizer = make_tokenizer(eos=False)
    assert trained_text(encode(passage("Q: yes", "yes"), tokenizer), tokenizer) == "yes"
    (document,) = encode_documents(["abc"], tokenizer)
    assert tokenizer.decode(document.input_ids) == "abc"


def test_documents_are_closed_and_opened_once(make_tokenizer: MakeTokenizer) -> None:
    tokenizer = make_tokenizer(adds_bos=True)
    documents = encode_documents(["a", "<s>b"], tokenizer)
    assert [tokenizer.decode(row.input_ids) for row in documents] == ["a</s>", "<s>b</s>"]
    rows = [opened_row(opening_ids(tokenizer), row) for row in documents]
    assert [tokenizer.decode(row.input_ids) for row in rows] == ["<s>a</s>", "<s>b</s>"]


def test_text_beyond_the_context_of_the_model_is_no_reason_to_warn(
    tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    warnings: list[str] = []
    monkeypatch.setattr(tokenization_utils_base.logger, "warning", lambda text, *args: warnings.append(text))
    tokenizer.model_max_length = 4
    tokenize(tokenizer, ["far too long"])
    assert warnings == []
    tokenizer(["far too long"])
    assert len(warnings) == 1


def test_no_texts_give_no_tokens(tokenizer: PreTrainedTokenizerBase) -> None:
    assert tokenize(tokenizer, []) == []
    assert encode_passages([], tokenizer, answers_only=True) == []


def test_the_first_token_of_a_row_counts_as_untrained() -> None:
    assert EncodedRow(input_ids=[5, 6, 7], labels=[5, IGNORED_LABEL, 7]).num_trained == 1
