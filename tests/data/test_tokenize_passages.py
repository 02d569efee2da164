from __future__ import annotations

from typing import Any

import pytest

from loraprune.data.tokenize import instruction_passage, instruction_prompt, prompt_completion_passage


def test_the_completion_follows_the_prompt_directly() -> None:
    passage = prompt_completion_passage({"prompt": "2+2=", "completion": "4"}, 1)
    assert passage is not None
    assert passage.text == "2+2=4"
    assert passage.answers == ((4, 5),)


def test_an_instruction_is_written_under_headings() -> None:
    passage = instruction_passage({"instruction": "Add.", "input": "2 2", "output": "4"}, 1)
    assert passage is not None
    assert passage.text == "### Instruction:\nAdd.\n\n### Input:\n2 2\n\n### Response:\n4"
    assert [passage.text[start:end] for start, end in passage.answers] == ["4"]


def test_the_answer_to_an_instruction_may_be_called_a_response() -> None:
    named = [
        instruction_passage({"instruction": "Add.", "input": "2 2", key: "4"}, 1) for key in ("output", "response")
    ]
    assert named[0] == named[1] is not None


@pytest.mark.parametrize(
    "row", [{"instruction": "Add.", "output": "4"}, {"instruction": "Add.", "input": " ", "output": "4"}]
)
def test_an_instruction_without_input_has_no_heading_for_it(row: dict[str, Any]) -> None:
    passage = instruction_passage(row, 1)
    assert passage is not None
    assert passage.text == "### Instruction:\nAdd.\n\n### Response:\n4" == instruction_prompt("Add.") + "4"


@pytest.mark.parametrize("answer", [None, "", " \n"])
def test_rows_without_an_answer_are_empty(answer: str | None) -> None:
    assert prompt_completion_passage({"prompt": "x", "completion": answer}, 1) is None
    assert instruction_passage({"instruction": "x", "output": answer}, 1) is None


def test_an_output_without_a_task_is_empty_but_a_completion_without_a_prompt_is_not() -> None:
    assert instruction_passage({"instruction": " ", "input": None, "output": "x"}, 1) is None
    passage = prompt_completion_passage({"prompt": None, "completion": "x"}, 1)
    assert passage is not None
    assert passage.text == "x"


@pytest.mark.parametrize("value", [4, ["4"], {"role": "user"}])
def test_values_that_are_no_text_are_refused_with_their_row(value: object) -> None:
    with pytest.raises(ValueError, match=f"Row 7: the column 'output' holds a {type(value).__name__}; it must be text"):
        instruction_passage({"instruction": "x", "output": value}, 7)
