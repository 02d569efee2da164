from __future__ import annotations

import pytest
from datasets import Dataset

from loraprune.data.formats import DataFormat, columns_of, numbered_batches


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["text"], DataFormat.TEXT),
        (["id", "text"], DataFormat.TEXT),
        (["prompt", "completion"], DataFormat.PROMPT_COMPLETION),
        (["instruction", "output"], DataFormat.INSTRUCTION),
        (["instruction", "input", "output", "text"], DataFormat.INSTRUCTION),
        (["messages"], DataFormat.MESSAGES),
        (["conversations"], DataFormat.MESSAGES),
        (["prompt", "prompt_id", "messages"], DataFormat.MESSAGES),
    ],
)
def test_columns_tell_the_format(names: list[str], expected: DataFormat) -> None:
    assert columns_of(Dataset.from_dict({name: ["x"] for name in names})).format is expected


@pytest.mark.parametrize("names", [["sentence"], ["prompt"], ["completion", "sentence"], ["instruction", "input"]])
def test_unknown_columns_are_shown_beside_the_known_ones(names: list[str]) -> None:
    with pytest.raises(ValueError, match=rf"columns {', '.join(names)}, which .*prompt \+ completion; instruction"):
        columns_of(Dataset.from_dict({name: ["x"] for name in names}))


def test_rows_are_numbered_from_one_across_batches() -> None:
    dataset = Dataset.from_dict({"text": [str(i) for i in range(1, 2402)], "other": [0] * 2401})
    batches = list(numbered_batches(dataset, columns_of(dataset)))
    assert len(batches) > 1
    assert [(number, row) for batch in batches for number, row in batch] == [
        (i, {"text": str(i)}) for i in range(1, 2402)
    ]


def test_rows_are_plain_values_whatever_the_format_of_the_data_set() -> None:
    messages = [{"role": "user", "content": "x"}]
    dataset = Dataset.from_dict({"messages": [messages]}).with_format("pandas")
    ((number, row),) = next(numbered_batches(dataset, columns_of(dataset)))
    assert number == 1
    assert type(row["messages"]) is list
    assert row == {"messages": messages}
