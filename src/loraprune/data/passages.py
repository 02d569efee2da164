"""Text whose answers are marked, and the formats of a question and an answer written as such text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_TASK = "### Instruction:\n{instruction}\n\n"
_INPUT = "### Input:\n{input}\n\n"
_RESPONSE = "### Response:\n"


@dataclass(frozen=True, kw_only=True)
class Passage:
    """One row as text, with the parts of it that are answers.

    Attributes:
        text: the whole row.
        answers: where the answers stand, as ``(start, end)`` in characters, in order and without overlap.
        is_complete: whether ``text`` already holds the tokens that open and close a sequence, as what a chat
            template writes does. The tokenizer's own are added otherwise.
    """

    text: str
    answers: tuple[tuple[int, int], ...]
    is_complete: bool


def text_value(row: Mapping[str, Any], column: str, number: int) -> str:
    """Text of ``column``, empty where the row has none.

    Raises:
        ValueError: the value is no text; the message names row ``number``.
    """
    value = row.get(column)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise ValueError(
            f"Row {number}: the column {column!r} holds a {type(value).__name__} where text is needed. "
            "Write it as text; a conversation belongs in a column 'messages'."
        )
    return value


def instruction_prompt(instruction: str, input: str = "") -> str:
    """Write an instruction, and the input it is about, as the prompt that tuning used."""
    task = _TASK.format(instruction=instruction.strip())
    return task + (_INPUT.format(input=input.strip()) if input.strip() else "") + _RESPONSE


def _passage(prompt: str, answer: str) -> Passage | None:
    if not answer.strip():
        return None
    text = prompt + answer
    return Passage(text=text, answers=((len(prompt), len(text)),), is_complete=False)


def prompt_completion_passage(row: Mapping[str, Any], number: int) -> Passage | None:
    """Put the completion right behind the prompt; None without a completion."""
    return _passage(text_value(row, "prompt", number), text_value(row, "completion", number))


def instruction_passage(row: Mapping[str, Any], number: int) -> Passage | None:
    """Write the output behind the prompt made of instruction and input; None without a task or an output."""
    instruction, task_input = text_value(row, "instruction", number), text_value(row, "input", number)
    if not instruction.strip() and not task_input.strip():
        return None
    answer = "output" if "output" in row else "response"  # as in LaMini
    return _passage(instruction_prompt(instruction, task_input), text_value(row, answer, number))
