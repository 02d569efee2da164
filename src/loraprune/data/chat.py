"""Conversations rendered by the tokenizer's chat template, with the assistant's turns marked."""

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
"""Lowercase role names in ShareGPT-style data, mapped to the names that chat templates use."""
_CALLS = ("function_call", "tool_call")
"""Roles of turns that hold the assistant's tool calls as JSON."""
_MARKS = ("weight", "train", "loss")
"""Keys that say whether a turn is trained on, as OpenAI, axolotl and ms-swift write them."""
_GENERATION = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")


def normalize_messages(messages: object, number: int) -> list[Message]:
    """Convert the turns of row ``number`` to the form ``{"role": …, "content": …}``.

    ShareGPT's ``from`` and ``value`` are renamed, and so are its roles. Keys without a value are dropped.

    Raises:
        ValueError: a turn has no role or no content, or is not a turn.
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
        raise ValueError(f"{where} has no text under 'role' (or 'from'): it has {keys}.")
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
        raise ValueError(f"{where}: the content is a {type(content).__name__}; it must be text.")
    return {"role": _ROLES.get(known, role), **({} if content is None else {"content": content}), **rest}


def _text_of_parts(parts: list[Any], where: str) -> str:
    """Join the text parts of a content, ``[{"type": "text", "text": …}]``."""
    for part in parts:
        if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            kind = repr(part.get("type")) if isinstance(part, dict) else f"a {type(part).__name__}"
            raise ValueError(
                f"{where}: the content has a part of type {kind}; only text parts are supported: "
                '{"type": "text", "text": …}. Leave such rows out.'
            )
    return "".join(part["text"] for part in parts)


def prompt_and_completion(row: Mapping[str, Any], number: int, answers_only: bool) -> list[Message]:
    """Join the turns of a prompt and its completion into one conversation.

    Args:
        row: row with lists of turns under ``prompt`` and ``completion``.
        number: number of the row.
        answers_only: mark the turns of the prompt as not trained on.

    Raises:
        ValueError: a turn is malformed, or the completion has no assistant turn.
    """
    prompt, completion = (normalize_messages(row[name], number) for name in ("prompt", "completion"))
    if completion and not any(_answers(turn) for turn in completion):
        raise ValueError(f"Row {number}: the completion has no assistant turn to train on. Add one.")
    return [{**turn, "train": 0} if answers_only else turn for turn in prompt] + completion


def _calls(given: object, where: str) -> list[dict[str, Any]]:
    """Convert one or several tool calls to the form that chat templates take."""
    given = _from_json(given, where)
    calls = given if isinstance(given, list) else [given]
    if not calls or not all(isinstance(call, dict) and "name" in call for call in calls):
        raise ValueError(f'{where}: the tool call is malformed. Write it as {{"name": …, "arguments": …}}.')
    return [{"type": "function", "function": call} for call in calls]


def _from_json(value: object, where: str) -> Any:
    """Parse text as JSON; return other values as they are."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where} is not valid JSON: {error.msg} at column {error.colno}.") from error


def without_nulls(value: Any) -> Any:
    """Return ``value`` without null keys, at any depth.

    A table has the same keys in every row: it fills the keys that a row lacks with null.
    """
    if isinstance(value, dict):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    return [without_nulls(item) for item in value] if isinstance(value, list) else value


def with_system(messages: list[Message], system: str, number: int) -> list[Message]:
    """Add the text of the column ``system`` as the first turn of a conversation.

    Raises:
        ValueError: the conversation begins with a different system turn.
    """
    if not system.strip() or not messages:
        return messages
    if messages[0]["role"] != "system":
        return [{"role": "system", "content": system}, *messages]
    if messages[0].get("content") != system:
        raise ValueError(
            f"Row {number}: the conversation has a system turn, and the column 'system' differs from it. Keep one."
        )
    return messages


def template_variables(row: Mapping[str, Any], number: int) -> dict[str, Any]:
    """Return the template variables of a row: ``tools`` and ``chat_template_kwargs``, as in trl.

    Raises:
        ValueError: a value is not valid JSON or has the wrong type.
    """
    found: dict[str, Any] = {}
    for name, kind in (("chat_template_kwargs", dict), ("tools", list)):
        where = f"Row {number}: the column {name!r}"
        value = without_nulls(_from_json(row.get(name) or None, where))
        if value is not None and not isinstance(value, kind):
            raise ValueError(f"{where} holds a {type(value).__name__}; it must be a {kind.__name__}.")
        if value:
            found[name] = value
    tools = [_from_json(tool, f"Row {number}: a tool") for tool in found.get("tools", [])]
    return {**found.get("chat_template_kwargs", {}), **({"tools": tools} if tools else {})}


def _is_trained(message: Message, where: str) -> bool:
    """Whether a turn is trained on: no mark says otherwise."""
    for mark in _MARKS:
        if message.get(mark, 1) not in (0, 1):
            raise ValueError(f"{where}: {mark!r} is {message[mark]!r}; it must be 1 (train on the turn) or 0.")
    return all(message.get(mark, 1) for mark in _MARKS)


@dataclass(frozen=True, kw_only=True)
class ChatWriter:
    """Renders conversations as text.

    Attributes:
        tokenizer: tokenizer with the chat template.
        answers_only: whether to find the answers.
        marked_template: template that marks the answers with ``{% generation %}``, if there is one.
    """

    tokenizer: PreTrainedTokenizerBase
    answers_only: bool
    marked_template: str | None = None

    def passage(
        self, messages: Sequence[Message], number: int, variables: Mapping[str, Any] | None = None
    ) -> Passage | None:
        """Render the conversation of row ``number`` and find its answers; None if it is empty or has no answer.

        An assistant turn at the start of a conversation counts as an answer only if the template marks it. A turn
        that the data marks as not trained on does not count.

        Args:
            messages: turns as :func:`normalize_messages` returns them.
            number: number of the row.
            variables: other template variables, such as ``tools``.

        Raises:
            ValueError: the template rejects the conversation, leaves out tools or tool calls, or the answers cannot
                be found.
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
        """Check that the template writes tools and tool calls."""
        silent = [
            {**{key: value for key, value in turn.items() if key != "tool_calls"}, "content": turn.get("content", "")}
            if "tool_calls" in turn
            else turn
            for turn in turns
        ]
        without = {key: value for key, value in variables.items() if key != "tools"}
        for what, other in (
            ("tool calls", (silent, variables) if any(turn.get("tool_calls") for turn in turns) else None),
            ("tools", (turns, without) if "tools" in variables else None),
        ):
            if other is not None and self._writes_the_same(*other, as_text=self._write(turns, variables)):
                raise ValueError(
                    f"Row {number} has {what}, which the tokenizer's chat template does not write. Pass a tokenizer "
                    "whose template does (--tokenizer), or leave such rows out."
                )

    def _writes_the_same(self, turns: Sequence[Message], variables: Mapping[str, Any], *, as_text: str) -> bool:
        try:
            return self._write(turns, variables) == as_text
        except (TemplateError, TypeError):  # for example, a tool's answer without the call
            return False

    def _check_roles(self, turns: Sequence[Message], number: int) -> None:
        """Raise an error if a row has no answers because its roles are unknown."""
        roles = {turn["role"] for turn in turns}
        if "assistant" not in roles and not roles <= set(_ROLES.values()):
            raise ValueError(
                f"Row {number} has no assistant turn to train on: its roles are {', '.join(sorted(roles))}. "
                "Name the role that answers 'assistant'."
            )

    def _found(
        self, turns: Sequence[Message], trained: Sequence[bool], variables: Mapping[str, Any], number: int
    ) -> tuple[str, tuple[tuple[int, int], ...]]:
        """Return the text and the positions of the answers to train on."""
        by_assistant = [is_trained for turn, is_trained in zip(turns, trained, strict=True) if _answers(turn)]
        if not self.answers_only:
            if not all(by_assistant):
                raise ValueError(
                    f"Row {number} marks a turn as not trained on, but --no-answers-only trains on all tokens. Remove "
                    "the option or the mark."
                )
            return self._write(turns, variables), ()
        # A tokenizer with several templates has a separate one for tools.
        if self.marked_template is None or ("tools" in variables and isinstance(self.tokenizer.chat_template, dict)):
            return self._by_prefix(turns, trained, variables, number)
        text, spans = self._marked(turns, variables)
        if all(by_assistant):
            return text, spans
        if len(spans) != len(by_assistant):
            raise ValueError(
                f"Row {number} marks a turn as not trained on, but the turn cannot be located: the row has "
                f"{len(by_assistant)} assistant turns, and the chat template marks {len(spans)} parts. Leave the row "
                "out, or use a template without {% generation %}."
            )
        return text, tuple(span for span, is_trained in zip(spans, by_assistant, strict=True) if is_trained)

    def _marked(
        self, turns: Sequence[Message], variables: Mapping[str, Any]
    ) -> tuple[str, tuple[tuple[int, int], ...]]:
        # `apply_chat_template(return_assistant_tokens_mask=True)` maps these positions to tokens by offsets. That
        # loses answers that begin or end with a space (transformers issue 47325), so we use the positions.
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
        """Find each answer as the text that the template adds to the conversation before it."""
        text = self._write(turns, variables)
        answers: list[tuple[int, int]] = []
        for i, turn in enumerate(turns):
            if not _answers(turn) or i == 0 or not trained[i]:
                continue
            before = self._write(turns[:i], variables, open_answer=True)
            after = self._write(turns[: i + 1], variables)
            if not (text.startswith(before) and text.startswith(after) and len(before) <= len(after)):
                raise ValueError(
                    f"Row {number}: the answers cannot be located, because the tokenizer's chat template changes "
                    "earlier turns when later ones follow. Train on all tokens with --no-answers-only, or mark the "
                    "answers in the template with {% generation %}."
                )
            answers.append((len(before), len(after)))
        return text, tuple(answers)


def _answers(turn: Message) -> bool:
    return bool(turn["role"] == "assistant")


def chat_writer(tokenizer: PreTrainedTokenizerBase, *, answers_only: bool) -> ChatWriter:
    """Choose the chat template that renders conversations for ``tokenizer``.

    With ``answers_only``, a template that marks the answers is preferred: the tokenizer's own, or the marked version
    that trl has of many published templates.

    Raises:
        ValueError: the tokenizer has no chat template.
    """
    if not tokenizer.chat_template:
        raise ValueError(
            "The data holds conversations, but the tokenizer has no chat template. Use the chat (instruct) version of "
            "the model, set tokenizer.chat_template, or give the data as prompt and completion."
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
