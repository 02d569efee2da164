from __future__ import annotations

import pytest
from tests.checkpoints import tiny_tokenizer

from loraprune.data.chat_prompt import chat_prompt, check_chat_template

WITHOUT_SYSTEM = "{% for m in messages %}{% if m.role == 'user' %}[{{ m.content }}]{% endif %}{% endfor %}"
REFUSES = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}[x]"


def test_a_prompt_is_a_user_message_and_the_answer_is_begun() -> None:
    start, end = "<|im_start|>", "<|im_end|>\n"
    asked = f"{start}user\nWhy?{end}{start}assistant\n"
    assert chat_prompt(tiny_tokenizer(), "Why?") == asked
    assert chat_prompt(tiny_tokenizer(), "Why?", "Be short.") == f"{start}system\nBe short.{end}{asked}"


@pytest.mark.parametrize(
    ("template", "system", "message"),
    [
        (None, None, "the tokenizer of small has none"),
        (WITHOUT_SYSTEM, "Be short.", "does not write a system prompt"),
        (REFUSES, "Be short.", "cannot write the prompt: no system role"),
        ("{% if %}", None, "cannot write the prompt"),
    ],
)
def test_a_template_that_does_not_write_what_is_asked_is_refused(
    template: str | None, system: str | None, message: str
) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    with pytest.raises(ValueError, match=message) as caught:
        check_chat_template(tokenizer, "small", system)
    assert "\n" not in str(caught.value)


def test_templates_without_a_system_role_write_the_prompt_alone() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = WITHOUT_SYSTEM
    check_chat_template(tokenizer, "small")
