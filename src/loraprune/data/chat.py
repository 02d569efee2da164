"""Conversations written by the tokenizer's chat template, with the assistant's turns marked."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from loraprune.data.tokenize import Passage

Message = dict[str, Any]

_ROLES = {
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "observation": "tool",
    "function_response": "tool",
}
"""Names of roles in ShareGPT data and the like, as chat templates call them."""
_GENERATION = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")


def normalize_messages(messages: object, number: int) -> list[Message]:
    """Bring the turns of row ``number`` into the form ``{"role": …, "content": …}``.

    ShareGPT's ``from`` and ``value`` are renamed, its roles too; keys without a value are left out.

    Raises:
        ValueError: a turn lacks its role or its content, or is no turn at all.
    """
    if messages is None:
        return []
    if not isinstance(messages, list):
        raise ValueError(
            f'Row {number}: the conversation is a {type(messages).__name__}, not a list of {{"role": …, "content": …}}.'
        )
    return [_normalize_message(message, f"Row {number}, message {i}") for i, message in enumerate(messages, start=1)]


def _normalize_message(message: object, where: str) -> Message:
    if not isinstance(message, dict):
        raise ValueError(f'{where} is a {type(message).__name__}, not {{"role": …, "content": …}}.')
    given = {key: value for key, value in message.items() if value is not None}
    rest = {key: value for key, value in given.items() if key not in ("role", "from", "content", "value")}
    role = given.get("role", given.get("from"))
    content = given.get("content", given.get("value"))
    keys = ", ".join(repr(key) for key in given) or "nothing"
    if not isinstance(role, str):
        raise ValueError(f"{where} has no 'role' (or 'from') that is text: it has {keys}.")
    if content is None and "tool_calls" not in given:
        raise ValueError(f"{where} has no 'content' (or 'value'): it has {keys}.")
    if content is not None and not isinstance(content, str):
        raise ValueError(f"{where}: the content is a {type(content).__name__} where text is needed.")
    known = _ROLES.get(role.lower(), role)
    return {"role": known, **({} if content is None else {"content": content}), **rest}


@dataclass(frozen=True, kw_only=True)
class ChatWriter:
    """Writes conversations as text.

    Attributes:
        tokenizer: the tokenizer whose chat template is used.
        answers_only: whether the answers must be found.
        marked_template: the template to use for that where it marks the answers itself, by ``{% generation %}``.
    """

    tokenizer: PreTrainedTokenizerBase
    answers_only: bool
    marked_template: str | None = None

    def passage(self, messages: list[Message], number: int) -> Passage | None:
        """Write the conversation of row ``number`` and find its answers; None where it is empty.

        An assistant's turn before any other answers nothing, and does not count as an answer unless the template
        marks it.

        Raises:
            ValueError: the template refuses the conversation, or its answers cannot be found.
        """
        if not messages:
            return None
        try:
            if not self.answers_only:
                return Passage(text=self._write(messages), answers=(), is_complete=True)
            text, answers = self._marked(messages) if self.marked_template else self._by_prefix(messages, number)
        except (TemplateError, TypeError) as error:
            raise ValueError(
                f"Row {number}: the tokenizer's chat template cannot write this conversation: {error}."
            ) from error
        return Passage(text=text, answers=answers, is_complete=True)

    def _marked(self, messages: list[Message]) -> tuple[str, tuple[tuple[int, int], ...]]:
        # `apply_chat_template(return_assistant_tokens_mask=True)` maps these positions to tokens by offsets and loses
        # answers that begin or end with a space (transformers issue 47325), so we take the positions themselves.
        special_tokens: dict[str, Any] = dict(self.tokenizer.special_tokens_map)
        rendered: Any = render_jinja_template(
            conversations=[messages],
            chat_template=self.marked_template,
            return_assistant_tokens_mask=True,
            **special_tokens,
        )
        (text,), (spans,) = rendered
        return text, tuple((start, end) for start, end in spans)

    def _write(self, messages: list[Message], *, open_answer: bool = False) -> str:
        text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=open_answer)
        assert isinstance(text, str)
        return text

    def _by_prefix(self, messages: list[Message], number: int) -> tuple[str, tuple[tuple[int, int], ...]]:
        """Find each answer as what the template adds to the conversation that leads up to it."""
        text = self._write(messages)
        answers: list[tuple[int, int]] = []
        for i, message in enumerate(messages):
            if message["role"] != "assistant" or i == 0:
                continue
            before = self._write(messages[:i], open_answer=True)
            after = self._write(messages[: i + 1])
            if not (text.startswith(before) and text.startswith(after) and len(before) <= len(after)):
                raise ValueError(
                    f"Row {number}: the answers cannot be told from the rest, because the tokenizer's chat template "
                    "writes earlier turns in another way once later ones follow. Train on all tokens with "
                    "--no-answers-only, or mark the answers in the template with {% generation %}."
                )
            answers.append((len(before), len(after)))
        return text, tuple(answers)


def chat_writer(tokenizer: PreTrainedTokenizerBase, *, answers_only: bool) -> ChatWriter:
    """Choose how conversations are written for ``tokenizer``.

    Where only answers are trained, a template that marks them is preferred: the tokenizer's own, or the marked twin
    that trl keeps of many published templates.

    Raises:
        ValueError: the tokenizer has no chat template.
    """
    if not tokenizer.chat_template:
        raise ValueError(
            "The data holds conversations, but the tokenizer has no chat template to write them with. Use the chat "
            "(instruct) version of the model, set tokenizer.chat_template, or give the data as prompt and completion."
        )
    if not answers_only:
        return ChatWriter(tokenizer=tokenizer, answers_only=False)
    template = tokenizer.get_chat_template()
    marked = template if _GENERATION.search(template) else _marked_twin(tokenizer)
    return ChatWriter(tokenizer=tokenizer, answers_only=True, marked_template=marked)


def _marked_twin(tokenizer: PreTrainedTokenizerBase) -> str | None:
    from trl.chat_template_utils import get_training_chat_template  # late: trl takes seconds to import

    try:
        return get_training_chat_template(tokenizer)
    except ValueError:  # a template that trl does not know
        return None
