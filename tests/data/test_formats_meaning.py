"""Columns and keys that say more than the text of a row: read, refused with the reason, or named as not used."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from tests.checkpoints import tiny_tokenizer, write_jsonl
from tests.data.conftest import MakeTokenizer
from tests.data.test_chat import CALL, CHAT, CHATML, TOOLED, TOOLS, WITH_CALL
from tests.data.test_formats import texts, trained_texts

from loraprune.data.formats import PreparedRows, prepare_dataset
from loraprune.data.pairs import prepare_pairs
from loraprune.data.sources import load_source
from loraprune.data.tokenize import instruction_prompt
from loraprune.tasks.rows import tell_of_lost_rows, tell_of_plain_rows


def prepared_chats(path: Path, rows: list[dict[str, Any]], make_tokenizer: MakeTokenizer) -> tuple[PreparedRows, Any]:
    """Rows by way of a file, whose table has every key in every row."""
    tokenizer = make_tokenizer(chat_template=TOOLED)
    dataset = load_source(str(write_jsonl(path / "chats.jsonl", rows)))
    return prepare_dataset(dataset, tokenizer, max_length=2000), tokenizer


def called(name: str, arguments: dict[str, Any]) -> list[dict[str, Any]]:
    call = {"type": "function", "function": {"name": name, "arguments": arguments}}
    return [CHAT[0], {"role": "assistant", "content": None, "tool_calls": [call]}]


def test_keys_that_only_other_rows_have_are_not_trained(tmp_path: Path, make_tokenizer: MakeTokenizer) -> None:
    arguments = [
        {"query": "sun"},
        {"city": "Bonn", "days": 3},
        {"query": "rain", "deep": {"page": 2}},
        {"deep": {"x": 1}},
    ]
    tools = [[{"type": "function", "function": {"name": f"t{i}", "parameters": {f"p{i}": {}}}}] for i in range(4)]
    rows = [
        {"messages": called(f"t{i}", given), "tools": tool}
        for i, (given, tool) in enumerate(zip(arguments, tools, strict=True))
    ]
    prepared, tokenizer = prepared_chats(tmp_path, rows, make_tokenizer)
    assert "null" not in "".join(texts(prepared, tokenizer))
    written = [json.loads(text.removesuffix("<|im_end|>\n")) for text in trained_texts(prepared, tokenizer)]
    assert written == [{"name": f"t{i}", "arguments": given} for i, given in enumerate(arguments)]
    for tool, text in zip(tools, texts(prepared, tokenizer), strict=True):
        assert json.loads(text.split("\n")[1].removesuffix("<|im_end|>")) == tool


def test_tools_and_a_system_text_are_given_to_the_template(tmp_path: Path, make_tokenizer: MakeTokenizer) -> None:
    rows = [
        {"messages": WITH_CALL, "tools": TOOLS, "system": "be brief"},
        {"messages": CHAT, "tools": None, "system": None},
    ]
    prepared, tokenizer = prepared_chats(tmp_path, rows, make_tokenizer)
    first, second = texts(prepared, tokenizer)
    assert first.index("tools\n[{") < first.index("system\nbe brief") < first.index("user\nhello")
    assert "tools" not in second
    assert "system" not in second
    assert "be brief" not in "".join(trained_texts(prepared, tokenizer))
    assert prepared.unused == ()


def test_sharegpt_calls_and_turns_that_are_not_trained(tmp_path: Path, make_tokenizer: MakeTokenizer) -> None:
    turns = [
        {"from": "Human", "value": "hello"},
        {"from": "function_call", "value": json.dumps(CALL)},
        {"from": "observation", "value": "it shines"},
        {"from": "GPT", "value": "yes", "weight": 0},
    ]
    rows = [{"conversations": turns, "tools": json.dumps(TOOLS)}]
    prepared, tokenizer = prepared_chats(tmp_path, rows, make_tokenizer)
    assert trained_texts(prepared, tokenizer) == [json.dumps(CALL) + "<|im_end|>\n"]


def test_history_and_system_of_an_instruction_are_read_and_not_trained(make_tokenizer: MakeTokenizer) -> None:
    row = {"instruction": "and 3?", "input": "", "output": "9", "system": "Square.", "history": [["2?", "4"]]}
    tokenizer = make_tokenizer()
    prepared = prepare_dataset(Dataset.from_list([row, row | {"history": [], "system": ""}]), tokenizer, max_length=500)
    before = f"Square.\n\n{instruction_prompt('2?')}4\n\n"
    assert texts(prepared, tokenizer) == [
        f"{before}{instruction_prompt('and 3?')}9</s>",
        f"{instruction_prompt('and 3?')}9</s>",
    ]
    assert trained_texts(prepared, tokenizer) == ["9</s>", "9</s>"]


@pytest.mark.parametrize("history", ["2? 4", [["2?"]], ["2?", "4"], [["2?", None]]])
def test_a_history_of_another_form_is_refused(make_tokenizer: MakeTokenizer, history: object) -> None:
    rows = Dataset.from_list([{"instruction": "x", "output": "y", "history": history}])
    with pytest.raises(ValueError, match="Row 1: the column 'history' must be a list of pairs"):
        prepare_dataset(rows, make_tokenizer(), max_length=100)


@pytest.mark.parametrize(
    ("row", "column"),
    [
        ({"prompt": "x", "completion": "y"}, "system"),
        ({"prompt": "x", "completion": "y"}, "tools"),
        ({"prompt": "x", "completion": "y"}, "history"),
        ({"instruction": "x", "output": "y"}, "tools"),
        ({"messages": CHAT}, "history"),
    ],
)
def test_what_a_row_has_no_place_for_is_refused(
    make_tokenizer: MakeTokenizer, row: dict[str, Any], column: str
) -> None:
    tokenizer = make_tokenizer(chat_template=CHATML)
    prepare_dataset(Dataset.from_list([row | {column: None}, row | {column: ""}]), tokenizer, max_length=200)
    with pytest.raises(ValueError, match=f"Row 2: the format .* cannot represent the column '{column}'.*'messages'"):
        prepare_dataset(Dataset.from_list([row | {column: ""}, row | {column: "z"}]), tokenizer, max_length=200)
    if "messages" not in row:
        with pytest.raises(ValueError, match=f"Row 1: the format .* cannot represent the column '{column}'"):
            prepare_pairs(Dataset.from_list([row | {column: "z"}]), tokenizer, max_length=200)


def test_columns_that_are_not_used_are_named_once(
    make_tokenizer: MakeTokenizer, caplog: pytest.LogCaptureFixture
) -> None:
    rows = Dataset.from_list([{"id": n, "prompt": "x", "completion": "y", "source": "s"} for n in range(3)])
    prepared = prepare_dataset(rows, make_tokenizer(), max_length=100)
    with caplog.at_level(logging.WARNING, logger="loraprune"):
        tell_of_lost_rows(prepared)
    assert [record.getMessage() for record in caplog.records] == [
        "warning: columns of the data that are not used: id, source"
    ]
    caplog.clear()
    tell_of_lost_rows(prepare_dataset(rows.remove_columns(["id", "source"]), make_tokenizer(), max_length=100))
    assert caplog.records == []
    assert prepare_pairs(rows, make_tokenizer(), max_length=100).unused == ("id", "source")


@pytest.mark.parametrize(
    ("row", "template", "told"),
    [
        ({"text": "Some words."}, CHATML, "The data holds plain text"),
        ({"instruction": "x", "output": "y"}, CHATML, "The data holds instructions"),
        ({"text": "Some words."}, None, None),
        ({"messages": CHAT}, CHATML, None),
    ],
)
def test_rows_without_the_chat_template_of_the_tokenizer_are_mentioned(
    make_tokenizer: MakeTokenizer,
    caplog: pytest.LogCaptureFixture,
    row: dict[str, Any],
    template: str | None,
    told: str | None,
) -> None:
    tokenizer = make_tokenizer(chat_template=template)
    prepared = prepare_dataset(Dataset.from_list([row]), tokenizer, max_length=10 if "text" in row else 200)
    with caplog.at_level(logging.INFO, logger="loraprune"):
        tell_of_plain_rows(prepared, tokenizer)
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == (told is not None)
    assert told is None or (messages[0].startswith(told) and "'messages'" in messages[0])


def test_conversations_without_an_answer_are_not_refused_for_their_length(make_tokenizer: MakeTokenizer) -> None:
    rows = Dataset.from_dict({"messages": [CHAT[:1], CHAT[:1]]})
    with pytest.raises(ValueError, match="all rows are empty or have no answer"):
        prepare_dataset(rows, make_tokenizer(chat_template=CHATML), max_length=200)


class TestOpening:
    """What rows begin with, by ``--bos``."""

    @pytest.mark.parametrize(
        ("adds", "bos", "begins"),
        [
            ("$A", "auto", ""),
            ("$A </s>", "auto", ""),
            ("<s> $A </s>", "auto", "<s>"),
            ("<|im_start|> <s> $A", "auto", "<|im_start|><s>"),
            ("<s> $A </s>", "never", ""),
            ("$A </s>", "always", "<s>"),
            ("<s> $A", "always", "<s>"),
        ],
    )
    def test_texts_begin_as_their_tokenizer_begins_them_or_blocks_always_or_nothing(
        self, adds: str, bos: str, begins: str
    ) -> None:
        tokenizer, text = tiny_tokenizer(adds=adds), Dataset.from_dict({"text": ["one two", "three four", "five"]})
        packed = prepare_dataset(text, tokenizer, max_length=9, bos=bos)
        of_text, of_block = (begins, "") if bos == "auto" else ("", begins)
        joined = "".join(f"{of_text}{document}</s>" for document in text["text"])
        rows = texts(packed, tokenizer)
        assert all(row.startswith(of_block) for row in rows)
        assert {len(row) for row in packed.dataset["input_ids"]} == {9}
        assert joined.startswith("".join(row.removeprefix(of_block) for row in rows))
        apart = prepare_dataset(text, tokenizer, max_length=90, packing=False, bos=bos)
        assert texts(apart, tokenizer)[0] == f"{begins}one two</s>"
        answers = Dataset.from_dict({"prompt": ["x:"], "completion": ["y"]})
        for answers_only in (True, False):
            row = prepare_dataset(answers, tokenizer, max_length=90, answers_only=answers_only, bos=bos)
            assert texts(row, tokenizer) == [f"{begins}x:y</s>"]
        with_prompt = prepare_dataset(text, tokenizer, max_length=30, prompt="go", bos=bos)
        assert texts(with_prompt, tokenizer)[0].startswith(f"{begins}go\n\none two")

    def test_no_loss_is_taken_on_an_opening_of_several_tokens(self) -> None:
        tokenizer = tiny_tokenizer(adds="<|im_start|> <s> $A")
        prepared = prepare_dataset(Dataset.from_dict({"text": ["one two"]}), tokenizer, max_length=6, bos="always")
        assert [row[:2] for row in prepared.dataset["labels"]] == [[-100, -100]] * len(prepared.dataset)
        assert prepared.facts["trained_tokens"] == 4 * len(prepared.dataset)

    def test_a_chat_template_writes_its_own_unless_it_must_be_there(self) -> None:
        tokenizer, chat = tiny_tokenizer(adds="<s> $A </s>"), Dataset.from_dict({"messages": [CHAT]})
        begins = {
            bos: texts(prepare_dataset(chat, tokenizer, max_length=300, bos=bos), tokenizer)[0].split("user")[0]
            for bos in ("auto", "always", "never")
        }
        assert begins == {"auto": "<|im_start|>", "always": "<s><|im_start|>", "never": "<|im_start|>"}

    def test_rows_without_room_behind_their_opening_are_refused(self) -> None:
        with pytest.raises(ValueError, match="leaves no room after the 2 tokens"):
            prepare_dataset(
                Dataset.from_dict({"text": ["one"]}),
                tiny_tokenizer(adds="<|im_start|> <s> $A"),
                max_length=2,
                bos="always",
            )


PROMPT = [
    {"role": "user", "content": "hello"},
    {"role": "assistant", "content": "earlier"},
    {"role": "user", "content": [{"type": "text", "text": "and "}, {"type": "text", "text": "now?"}]},
]
COMPLETION = [{"role": "assistant", "content": "the answer"}]


def test_turns_of_a_prompt_are_read_and_those_of_its_completion_are_trained(
    tmp_path: Path, make_tokenizer: MakeTokenizer
) -> None:
    rows = [{"prompt": PROMPT, "completion": COMPLETION, "system": "be brief"}, {"prompt": PROMPT, "completion": []}]
    prepared, tokenizer = prepared_chats(tmp_path, rows, make_tokenizer)
    assert trained_texts(prepared, tokenizer) == ["the answer<|im_end|>\n"]
    (text,) = texts(prepared, tokenizer)
    assert text.index("be brief") < text.index("earlier") < text.index("and now?") < text.index("the answer")
    assert prepared.facts["empty_rows"] == 1


def test_text_and_turns_may_stand_in_one_column(tmp_path: Path, make_tokenizer: MakeTokenizer) -> None:
    rows = [{"prompt": "2+2=", "completion": "4"}, {"prompt": PROMPT, "completion": COMPLETION}]
    prepared, tokenizer = prepared_chats(tmp_path, rows, make_tokenizer)
    assert trained_texts(prepared, tokenizer) == ["4</s>", "the answer<|im_end|>\n"]


@pytest.mark.parametrize(
    ("prompt", "completion", "message"),
    [
        (PROMPT, "4", "Row 1: only one of 'prompt' and 'completion' is a conversation"),
        ("2+2=", COMPLETION, "Row 1: only one of 'prompt' and 'completion' is a conversation"),
        (PROMPT, PROMPT[:1], "Row 1: the completion has no assistant turn"),
        ([{"role": "user", "content": [{"type": "image"}]}], COMPLETION, "part of type 'image'"),
    ],
)
def test_prompts_that_do_not_go_with_their_completions_are_refused(
    tmp_path: Path, make_tokenizer: MakeTokenizer, prompt: object, completion: object, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        prepared_chats(tmp_path, [{"prompt": prompt, "completion": completion}], make_tokenizer)
