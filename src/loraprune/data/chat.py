"""Conversations written by the tokenizer's chat template, with the assistant's turns marked."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from loraprune.data.tokenize import Passage

Message = dict[str, Any]

_ROLES = {
    **{name: name for name in ("system", "developer", "user", "assistant", "tool")},
    "human": "user",
    "prompter": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "ai": "assistant",
    "observation": "tool",
    "function": "tool",
    "function_response": "tool",
    "tool_response": "tool",
}
"""Names of roles in ShareGPT data and the like, as chat templates call them; in small letters."""
_CALLS = ("function_call", "tool_call")
"""Roles of turns in which the assistant calls tools, written as JSON."""
_MARKS = ("weight", "train", "loss")
"""Keys that say whether a turn is trained: OpenAI's, axolotl's, and ms-swift's."""
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
    given = without_nulls(message)
    rest = {key: value for key, value in given.items() if key not in ("role", "from", "content", "value")}
    role = given.get("role", given.get("from"))
    content = given.get("content", given.get("value"))
    keys = ", ".join(repr(key) for key in given) or "nothing"
    if not isinstance(role, str):
        raise ValueError(f"{where} has no 'role' (or 'from') that is text: it has {keys}.")
    known = role.strip().lower()
    if known in _CALLS:
        return {"role": "assistant", **rest, "tool_calls": _calls(content, where)}
    if "function_call" in rest:
        rest["tool_calls"] = _calls(rest.pop("function_call"), where)
    if content is None and "tool_calls" not in rest:
        raise ValueError(f"{where} has no 'content' (or 'value'): it has {keys}.")
    if isinstance(content, list):
        content = _text_of_parts(content, where)
    if content is not None and not isinstance(content, str):
        raise ValueError(f"{where}: the content is a {type(content).__name__} where text is needed.")
    return {"role": _ROLES.get(known, role), **({} if content is None else {"content": content}), **rest}


def _text_of_parts(parts: list[Any], where: str) -> str:
    """The text of a content that is a list of parts, ``[{"type": "text", "text": …}]``."""
    for part in parts:
        if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            kind = repr(part.get("type")) if isinstance(part, dict) else f"a {type(part).__name__}"
            raise ValueError(
                f"{where}: the content is a list with a part of type {kind}, where only parts of text are understood: "
                '{"type": "text", "text": …}. Leave such rows out.'
            )
    return "".join(part["text"] for part in parts)


def prompt_and_completion(row: Mapping[str, Any], number: int, answers_only: bool) -> list[Message]:
    """The turns of a prompt and of its completion as one conversation, of which the prompt is not trained.

    Args:
        row: with lists of turns under ``prompt`` and ``completion``.
        number: of the row.
        answers_only: whether answers alone are trained; otherwise all turns are.

    Raises:
        ValueError: a turn is none, or the completion has none of the assistant.
    """
    prompt, completion = (normalize_messages(row[name], number) for name in ("prompt", "completion"))
    if completion and not any(_answers(turn) for turn in completion):
        raise ValueError(f"Row {number}: the completion has no turn of the assistant to train on. Give it one.")
    return [{**turn, "train": 0} if answers_only else turn for turn in prompt] + completion


def _calls(given: object, where: str) -> list[dict[str, Any]]:
    """Calls of tools, one or several, as chat templates take them."""
    given = _from_json(given, where)
    calls = given if isinstance(given, list) else [given]
    if not calls or not all(isinstance(call, dict) and "name" in call for call in calls):
        raise ValueError(f'{where} calls a tool, and is not written as {{"name": …, "arguments": …}}. Write it so.')
    return [{"type": "function", "function": call} for call in calls]


def _from_json(value: object, where: str) -> Any:
    """What JSON in a text says; other values as they are."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where} is not valid JSON: {error.msg} at column {error.colno}.") from error


def without_nulls(value: Any) -> Any:
    """``value`` without the keys that are null at any depth.

    A table has the same keys in every row, so that those that a row does not have are null there.
    """
    if isinstance(value, dict):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    return [without_nulls(item) for item in value] if isinstance(value, list) else value


def with_system(messages: list[Message], system: str, number: int) -> list[Message]:
    """Put the text of a column ``system`` before a conversation as its first turn.

    Raises:
        ValueError: the conversation begins with another one.
    """
    if not system.strip() or not messages:
        return messages
    if messages[0]["role"] != "system":
        return [{"role": "system", "content": system}, *messages]
    if messages[0].get("content") != system:
        raise ValueError(
            f"Row {number}: the conversation has a system turn, and the column 'system' another. Keep one."
        )
    return messages


def template_variables(row: Mapping[str, Any], number: int) -> dict[str, Any]:
    """What a row gives a chat template beside its conversation: ``tools`` and ``chat_template_kwargs``, as in trl.

    Raises:
        ValueError: one of them is not written as it should be.
    """
    found: dict[str, Any] = {}
    for name, kind in (("chat_template_kwargs", dict), ("tools", list)):
        where = f"Row {number}: the column {name!r}"
        value = without_nulls(_from_json(row.get(name) or None, where))
        if value is not None and not isinstance(value, kind):
            raise ValueError(f"{where} holds a {type(value).__name__} where a {kind.__name__} is needed.")
        if value:
            found[name] = value
    tools = [_from_json(tool, f"Row {number}: a tool") for tool in found.get("tools", [])]
    return {**found.get("chat_template_kwargs", {}), **({"tools": tools} if tools else {})}


def _is_trained(message: Message, where: str) -> bool:
    """Whether a turn is not marked as one that is not to be trained."""
    for mark in _MARKS:
        if message.get(mark, 1) not in (0, 1):
            raise ValueError(f"{where}: {mark!r} is {message[mark]!r}; a turn is trained (1) or is not (0).")
    return all(message.get(mark, 1) for mark in _MARKS)


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

    def passage(
        self, messages: Sequence[Message], number: int, variables: Mapping[str, Any] | None = None
    ) -> Passage | None:
        """Write the conversation of row ``number`` and find its answers; None where it is empty or has no answer.

        An assistant's turn before any other answers nothing, and does not count as an answer unless the template
        marks it; nor does one that the data marks as not to be trained.

        Args:
            messages: as :func:`normalize_messages` returns them.
            number: of the row.
            variables: further ones of the template, such as ``tools``.

        Raises:
            ValueError: the template refuses the conversation or leaves out calls or tools, or its answers cannot be
                found.
        """
        trained = [_is_trained(message, f"Row {number}, message {i}") for i, message in enumerate(messages, start=1)]
        turns = [{key: value for key, value in message.items() if key not in _MARKS} for message in messages]
        variables = variables or {}
        if not turns:
            return None
        try:
            self._check_written(turns, variables, number)
            text, answers = self._found(turns, trained, variables, number)
        except (TemplateError, TypeError) as error:
            raise ValueError(
                f"Row {number}: the tokenizer's chat template cannot write this conversation: {error}."
            ) from error
        if self.answers_only and not answers:
            self._check_roles(turns, number)
            return None
        return Passage(text=text, answers=answers, is_complete=True)

    def _write(self, turns: Sequence[Message], variables: Mapping[str, Any], *, open_answer: bool = False) -> str:
        text = self.tokenizer.apply_chat_template(
            list(turns), tokenize=False, add_generation_prompt=open_answer, **variables
        )
        assert isinstance(text, str)
        return text

    def _check_written(self, turns: Sequence[Message], variables: Mapping[str, Any], number: int) -> None:
        """Make sure that the template writes tools and their calls, and does not leave them out."""
        silent = [
            {**{key: value for key, value in turn.items() if key != "tool_calls"}, "content": turn.get("content", "")}
            if "tool_calls" in turn
            else turn
            for turn in turns
        ]
        without = {key: value for key, value in variables.items() if key != "tools"}
        for what, other in (
            ("calls of tools", (silent, variables) if any(turn.get("tool_calls") for turn in turns) else None),
            ("tools", (turns, without) if "tools" in variables else None),
        ):
            if other is not None and self._writes_the_same(*other, as_text=self._write(turns, variables)):
                raise ValueError(
                    f"Row {number} has {what}, which the tokenizer's chat template does not write. Name a tokenizer "
                    "whose template does with --tokenizer, or leave such rows out."
                )

    def _writes_the_same(self, turns: Sequence[Message], variables: Mapping[str, Any], *, as_text: str) -> bool:
        try:
            return self._write(turns, variables) == as_text
        except (TemplateError, TypeError):  # the answer of a tool without its call, say
            return False

    def _check_roles(self, turns: Sequence[Message], number: int) -> None:
        """Make sure that a row without answers has none because of a role that we do not know."""
        roles = {turn["role"] for turn in turns}
        if "assistant" not in roles and not roles <= set(_ROLES.values()):
            raise ValueError(
                f"Row {number} has no turn of the assistant to train on: its roles are {', '.join(sorted(roles))}. "
                "Call the one that answers 'assistant'."
            )

    def _found(
        self, turns: Sequence[Message], trained: Sequence[bool], variables: Mapping[str, Any], number: int
    ) -> tuple[str, tuple[tuple[int, int], ...]]:
        """The text, and where the answers stand in it that are to be trained."""
        by_assistant = [is_trained for turn, is_trained in zip(turns, trained, strict=True) if _answers(turn)]
        if not self.answers_only:
            if not all(by_assistant):
                raise ValueError(
                    f"Row {number} marks a turn as not to be trained, and --no-answers-only trains all tokens. Leave "
                    "the option or the mark out."
                )
            return self._write(turns, variables), ()
        # A tokenizer that has several templates keeps one of its own for tools.
        if self.marked_template is None or ("tools" in variables and isinstance(self.tokenizer.chat_template, dict)):
            return self._by_prefix(turns, trained, variables, number)
        text, spans = self._marked(turns, variables)
        if all(by_assistant):
            return text, spans
        if len(spans) != len(by_assistant):
            raise ValueError(
                f"Row {number} marks a turn as not to be trained, and of its {len(by_assistant)} turns of the "
                f"assistant the chat template marks {len(spans)} parts, so that the turn cannot be told. Leave the row "
                "out, or use a template without {% generation %}."
            )
        return text, tuple(span for span, is_trained in zip(spans, by_assistant, strict=True) if is_trained)

    def _marked(
        self, turns: Sequence[Message], variables: Mapping[str, Any]
    ) -> tuple[str, tuple[tuple[int, int], ...]]:
        # `apply_chat_template(return_assistant_tokens_mask=True)` maps these positions to tokens by offsets and loses
        # answers that begin or end with a space (transformers issue 47325), so we take the positions themselves.
        special_tokens: dict[str, Any] = dict(self.tokenizer.special_tokens_map)
        rendered: Any = render_jinja_template(
            conversations=[list(turns)],
            chat_template=self.marked_template,
            return_assistant_tokens_mask=True,
            **{**special_tokens, **variables},
        )
        (text,), (spans,) = rendered
        return text, tuple((start, end) for start, end in spans)

    def _by_prefix(
        self, turns: Sequence[Message], trained: Sequence[bool], variables: Mapping[str, Any], number: int
    ) -> tuple[str, tuple[tuple[int, int], ...]]:
        """Find each answer as what the template adds to the conversation that leads up to it."""
        text = self._write(turns, variables)
        answers: list[tuple[int, int]] = []
        for i, turn in enumerate(turns):
            if not _answers(turn) or i == 0 or not trained[i]:
                continue
            before = self._write(turns[:i], variables, open_answer=True)
            after = self._write(turns[: i + 1], variables)
            if not (text.startswith(before) and text.startswith(after) and len(before) <= len(after)):
                raise ValueError(
                    f"Row {number}: the answers cannot be told from the rest, because the tokenizer's chat template "
                    "writes earlier turns in another way once later ones follow. Train on all tokens with "
                    "--no-answers-only, or mark the answers in the template with {% generation %}."
                )
            answers.append((len(before), len(after)))
        return text, tuple(answers)


def _answers(turn: Message) -> bool:
    return bool(turn["role"] == "assistant")


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
