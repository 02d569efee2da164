from __future__ import annotations

from importlib.resources import files

import pytest
from tests.data.conftest import MakeTokenizer

from loraprune.data.chat import chat_writer, normalize_messages
from loraprune.data.tokenize import Passage

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MARKED = (
    "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %} {{ m.content }} {% endgeneration %}"
    "{% else %}[{{ m.content }}]{% endif %}{% endfor %}"
)
CHAT = [
    {"role": "user", "content": "hello"},
    {"role": "assistant", "content": "first answer"},
    {"role": "user", "content": "and now?"},
    {"role": "assistant", "content": "second answer"},
]


def answers(passage: Passage | None) -> list[str]:
    assert passage is not None
    return [passage.text[start:end] for start, end in passage.answers]


def test_sharegpt_turns_are_renamed() -> None:
    turns = [{"from": "human", "value": "x"}, {"from": "gpt", "value": "y", "weight": None}]
    assert normalize_messages(turns, 1) == [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]


def test_turns_keep_their_role_and_further_keys() -> None:
    turns = [{"role": "system", "content": "x", "name": "n"}, {"role": "assistant", "content": None, "tool_calls": []}]
    assert normalize_messages(turns, 1) == [
        {"role": "system", "content": "x", "name": "n"},
        {"role": "assistant", "tool_calls": []},
    ]


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([{"role": "user", "content": "x"}, {"content": "y"}], "Row 3, message 2 has no 'role' .*: it has 'content'"),
        ([{"role": "user", "text": "x"}], "Row 3, message 1 has no 'content' .*: it has 'role', 'text'"),
        ([{"role": "user", "content": None}], "Row 3, message 1 has no 'content' .*: it has 'role'"),
        ([{"role": "user", "content": ["x"]}], "Row 3, message 1: the content is a list where text is needed"),
        (["hello"], "Row 3, message 1 is a str, not"),
        ('[{"role": "user"}]', "Row 3: the conversation is a str, not a list"),
    ],
)
def test_malformed_turns_are_refused_with_their_place(messages: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        normalize_messages(messages, 3)


def test_answers_are_what_each_turn_adds(make_tokenizer: MakeTokenizer) -> None:
    passage = chat_writer(make_tokenizer(chat_template=CHATML), answers_only=True).passage(CHAT, 1)
    assert answers(passage) == ["first answer<|im_end|>\n", "second answer<|im_end|>\n"]


def test_answers_that_the_template_marks_are_taken_with_their_spaces(make_tokenizer: MakeTokenizer) -> None:
    passage = chat_writer(make_tokenizer(chat_template=MARKED), answers_only=True).passage(CHAT, 1)
    assert passage is not None
    assert passage.text == "[hello] first answer [and now?] second answer "
    assert answers(passage) == [" first answer ", " second answer "]


def test_only_the_answers_that_the_template_marks_are_taken(make_tokenizer: MakeTokenizer) -> None:
    template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if loop.last %}{% generation %}{{ m.content }}"
        "{% endgeneration %}{% else %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}"
    )
    passage = chat_writer(make_tokenizer(chat_template=template), answers_only=True).passage(CHAT, 1)
    assert answers(passage) == ["second answer"]


def test_an_opening_turn_of_the_assistant_answers_nothing(make_tokenizer: MakeTokenizer) -> None:
    passage = chat_writer(make_tokenizer(chat_template=CHATML), answers_only=True).passage(CHAT[1:], 1)
    assert answers(passage) == ["second answer<|im_end|>\n"]


def test_a_conversation_without_turns_is_empty(make_tokenizer: MakeTokenizer) -> None:
    assert chat_writer(make_tokenizer(chat_template=CHATML), answers_only=True).passage([], 1) is None


@pytest.mark.parametrize(
    "name",
    ["deepseekv3", "gemma", "gptoss", "llama3", "llama3_1", "phi3", "qwen2_5", "qwen3", "qwen3_instruct_2507"],
)
def test_published_templates_give_all_answers_and_no_question(make_tokenizer: MakeTokenizer, name: str) -> None:
    template = (files("trl") / "chat_templates" / f"{name}.jinja").read_text(encoding="utf-8")
    passage = chat_writer(make_tokenizer(bos=True, chat_template=template), answers_only=True).passage(CHAT, 1)
    found = "|".join(answers(passage))
    assert found.count("first answer") == found.count("second answer") == 1
    assert not any(part in found for part in ("hello", "and now?", "user"))


LAST_TURN_THINKS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if loop.last and m.role == 'assistant' %}<think></think>{% endif %}{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def test_a_template_that_rewrites_earlier_turns_is_refused(make_tokenizer: MakeTokenizer) -> None:
    writer = chat_writer(make_tokenizer(chat_template=LAST_TURN_THINKS), answers_only=True)
    assert answers(writer.passage(CHAT[:2], 1)) == ["<think></think>first answer<|im_end|>\n"]
    with pytest.raises(ValueError, match=r"Row 5: the answers cannot be told from the rest.*--no-answers-only"):
        writer.passage(CHAT, 5)


def test_a_template_that_rewrites_earlier_turns_will_do_where_all_tokens_are_trained(
    make_tokenizer: MakeTokenizer,
) -> None:
    passage = chat_writer(make_tokenizer(chat_template=LAST_TURN_THINKS), answers_only=False).passage(CHAT, 1)
    assert passage is not None
    assert "first answer" in passage.text
    assert passage.answers == ()


def test_a_conversation_that_the_template_refuses_is_named(make_tokenizer: MakeTokenizer) -> None:
    template = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + CHATML
    writer = chat_writer(make_tokenizer(chat_template=template), answers_only=True)
    with pytest.raises(ValueError, match=r"Row 9: the tokenizer's chat template cannot write .*: no system role"):
        writer.passage([{"role": "system", "content": "x"}, *CHAT], 9)


def test_a_tokenizer_without_chat_template_is_refused_with_a_remedy(make_tokenizer: MakeTokenizer) -> None:
    with pytest.raises(ValueError, match=r"no chat template .* set tokenizer\.chat_template, or .* prompt and compl"):
        chat_writer(make_tokenizer(), answers_only=True)
