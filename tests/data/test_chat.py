from __future__ import annotations

import json
from importlib.resources import files

import pytest
from tests.data.conftest import MakeTokenizer

from loraprune.data.chat import chat_writer, normalize_messages, template_variables, with_system
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
        (
            [{"role": "user", "content": "x"}, {"content": "y"}],
            "Row 3, message 2 has no text under 'role' .*: it has 'content'",
        ),
        ([{"role": "user", "text": "x"}], "Row 3, message 1 has no 'content' .*: it has 'role', 'text'"),
        ([{"role": "user", "content": None}], "Row 3, message 1 has no 'content' .*: it has 'role'"),
        ([{"role": "user", "content": ["x"]}], "Row 3, message 1: the content has a part of type a str"),
        ([{"role": "user", "content": [{"type": "image"}]}], "a part of type 'image'; only text parts"),
        ([{"role": "user", "content": {"text": "x"}}], "Row 3, message 1: the content is a dict; it must be text"),
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
    file = files("trl") / "chat_templates" / f"{name}.jinja"
    if not file.is_file():
        pytest.skip(f"this version of trl has no template {name}")
    template = file.read_text(encoding="utf-8")
    passage = chat_writer(make_tokenizer(bos=True, chat_template=template), answers_only=True).passage(CHAT, 1)
    found = "|".join(answers(passage))
    assert found.count("first answer") == found.count("second answer") == 1
    assert not any(part in found for part in ("hello", "and now?", "user"))


TOOLED = (
    "{% if tools %}<|im_start|>tools\n{{ tools | tojson }}<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "{% for call in m.tool_calls or [] %}{{ call.function | tojson }}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PROPERTIES = {"query": {"type": "string", "description": "what to look for"}}
TOOLS = [
    {"type": "function", "function": {"name": "search", "description": "d", "parameters": {"properties": PROPERTIES}}}
]
CALL = {"name": "search", "arguments": {"query": "sun"}}
WRITTEN_CALL = '{"name": "search", "arguments": {"query": "sun"}}<|im_end|>\n'
WITH_CALL = [
    {"role": "user", "content": "hello"},
    {"role": "assistant", "tool_calls": [{"type": "function", "function": CALL}]},
    {"role": "tool", "content": "it shines"},
    {"role": "assistant", "content": "yes"},
]


@pytest.mark.parametrize("role", ["Assistant", "ASSISTANT", " gpt ", "Bot", "AI"])
def test_roles_are_known_in_capitals(role: str) -> None:
    assert normalize_messages([{"role": role, "content": "x"}], 1) == [{"role": "assistant", "content": "x"}]


@pytest.mark.parametrize(
    "turn",
    [
        {"role": "assistant", "content": None, "tool_calls": [{"type": "function", "function": CALL}]},
        {"from": "function_call", "value": '{"name": "search", "arguments": {"query": "sun"}}'},
        {"from": "function_call", "value": '[{"name": "search", "arguments": {"query": "sun"}}]'},
        {"role": "tool_call", "content": '{"name": "search", "arguments": {"query": "sun"}}'},
        {"role": "assistant", "content": None, "function_call": {**CALL, "id": None}},
        {"role": "assistant", "tool_calls": [{"type": "function", "function": {**CALL, "arguments": {
            "query": "sun", "place": None, "filter": None}}}]},
    ],
)  # fmt: skip
def test_calls_of_tools_are_answers_however_they_are_written(
    make_tokenizer: MakeTokenizer, turn: dict[str, object]
) -> None:
    messages = normalize_messages([WITH_CALL[0], turn, {"from": "observation", "value": "it shines"}, WITH_CALL[3]], 1)
    passage = chat_writer(make_tokenizer(chat_template=TOOLED), answers_only=True).passage(messages, 1)
    assert answers(passage) == [WRITTEN_CALL, "yes<|im_end|>\n"]


@pytest.mark.parametrize("value", ["search(sun)", '{"arguments": {}}', "[]", '"search"'])
def test_a_call_that_is_none_is_refused(value: str) -> None:
    with pytest.raises(ValueError, match="Row 2, message 1"):
        normalize_messages([{"from": "function_call", "value": value}], 2)


def test_what_a_template_would_leave_out_is_refused(make_tokenizer: MakeTokenizer) -> None:
    silent = chat_writer(make_tokenizer(chat_template=CHATML), answers_only=True)
    with pytest.raises(ValueError, match="Row 4 has tool calls, which the tokenizer's chat template"):
        silent.passage(WITH_CALL, 4)
    with pytest.raises(ValueError, match="Row 4 has tools, which the tokenizer's chat template does not write"):
        silent.passage(CHAT, 4, {"tools": TOOLS})
    every = chat_writer(make_tokenizer(chat_template=CHATML), answers_only=False)
    with pytest.raises(ValueError, match="Row 4 has tool calls"):
        every.passage(WITH_CALL, 4)


@pytest.mark.parametrize("name", ["gptoss", "llama3_1", "qwen2_5", "qwen3", "glm4moe", "lfm2_v2"])
def test_published_templates_train_calls_of_tools_and_no_result(make_tokenizer: MakeTokenizer, name: str) -> None:
    file = files("trl") / "chat_templates" / f"{name}.jinja"
    if not file.is_file():
        pytest.skip(f"this version of trl has no template {name}")
    template = file.read_text(encoding="utf-8")
    writer = chat_writer(make_tokenizer(bos=True, chat_template=template), answers_only=True)
    passage = writer.passage(WITH_CALL, 1, {"tools": TOOLS})
    found = answers(passage)
    assert len(found) == 2
    assert "search" in found[0]
    assert "sun" in found[0]
    assert "yes" in found[1]
    assert "it shines" not in "".join(found)
    assert passage is not None
    assert "what to look for" in passage.text


@pytest.mark.parametrize("mark", [{"weight": 0}, {"weight": 0.0}, {"train": False}, {"loss": False}])
@pytest.mark.parametrize("template", [CHATML, MARKED])
def test_a_turn_that_is_marked_as_not_to_be_trained_is_none(
    make_tokenizer: MakeTokenizer, template: str, mark: dict[str, object]
) -> None:
    marked = [{**CHAT[0], "weight": 0}, CHAT[1] | mark, CHAT[2], CHAT[3] | dict.fromkeys(mark, 1)]
    writer = chat_writer(make_tokenizer(chat_template=template), answers_only=True)
    expected = writer.passage(CHAT, 1)
    passage = writer.passage(marked, 1)
    assert answers(passage) == answers(expected)[1:]
    assert passage is not None
    assert expected is not None
    assert passage.text == expected.text
    assert writer.passage([CHAT[0], CHAT[1] | mark], 1) is None


def test_marks_that_cannot_be_followed_are_refused(make_tokenizer: MakeTokenizer) -> None:
    marked = [CHAT[0], CHAT[1] | {"weight": 0}, *CHAT[2:]]
    with pytest.raises(ValueError, match="Row 1 marks a turn as not trained on, but --no-answers-only"):
        chat_writer(make_tokenizer(chat_template=CHATML), answers_only=False).passage(marked, 1)
    with pytest.raises(ValueError, match=r"Row 1, message 2: 'weight' is 0\.5; it must be 1"):
        chat_writer(make_tokenizer(chat_template=CHATML), answers_only=True).passage(
            [CHAT[0], CHAT[1] | {"weight": 0.5}], 1
        )
    twice = MARKED.replace("{{ m.content }} {% endgen", "{{ m.content }}{% endgeneration %}{% generation %}x{% endgen")
    with pytest.raises(ValueError, match="2 assistant turns, and the chat template marks 4 parts"):
        chat_writer(make_tokenizer(chat_template=twice), answers_only=True).passage(marked, 1)


def test_a_row_whose_roles_nobody_knows_is_refused_with_them(make_tokenizer: MakeTokenizer) -> None:
    turns = normalize_messages([{"role": "User", "content": "x"}, {"role": "Captain", "content": "y"}], 7)
    writer = chat_writer(make_tokenizer(chat_template=CHATML), answers_only=True)
    with pytest.raises(ValueError, match=r"Row 7 has no assistant turn .*: its roles are Captain, user"):
        writer.passage(turns, 7)
    assert writer.passage(CHAT[:1], 7) is None


def test_a_system_text_beside_a_conversation_is_its_first_turn() -> None:
    system = {"role": "system", "content": "be brief"}
    assert with_system(CHAT, "be brief", 1) == with_system([system, *CHAT], "be brief", 1) == [system, *CHAT]
    assert with_system(CHAT, " ", 1) == CHAT
    with pytest.raises(ValueError, match="Row 3: the conversation has a system turn, and the column 'system' differs"):
        with_system([system, *CHAT], "be long", 3)


@pytest.mark.parametrize("given", [TOOLS, json.dumps(TOOLS), [json.dumps(TOOLS[0])]])
def test_tools_come_as_a_list_or_as_json(given: object) -> None:
    assert template_variables({"tools": given}, 1) == {"tools": TOOLS}
    assert template_variables({"tools": given, "chat_template_kwargs": {"thinking": True}}, 1) == {
        "tools": TOOLS, "thinking": True}  # fmt: skip


@pytest.mark.parametrize("nothing", [None, "", [], "[]"])
def test_no_tools_are_none(nothing: object) -> None:
    assert template_variables({"tools": nothing}, 1) == {}


@pytest.mark.parametrize("wrong", ["search", '{"name": "search"}', 7])
def test_tools_of_another_form_are_refused(wrong: object) -> None:
    with pytest.raises(ValueError, match="Row 5: the column 'tools'"):
        template_variables({"tools": wrong}, 5)


LAST_TURN_THINKS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if loop.last and m.role == 'assistant' %}<think></think>{% endif %}{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def test_a_template_that_rewrites_earlier_turns_is_refused(make_tokenizer: MakeTokenizer) -> None:
    writer = chat_writer(make_tokenizer(chat_template=LAST_TURN_THINKS), answers_only=True)
    assert answers(writer.passage(CHAT[:2], 1)) == ["<think></think>first answer<|im_end|>\n"]
    with pytest.raises(ValueError, match=r"Row 5: the answers cannot be located.*--no-answers-only"):
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
    with pytest.raises(ValueError, match=r"no chat template\. .* set tokenizer\.chat_template, or .* prompt and compl"):
        chat_writer(make_tokenizer(), answers_only=True)
