"""Reads MMLU subjects from csv files: ``X_test.csv`` with the few-shot examples of ``X_dev.csv``."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from loraprune.metrics.tasks.tasks_local import LETTERS, Form, LocalTask, sha256

NUM_FEWSHOT = 5
"""As in the paper."""

HEADER = ("question", "choice0", "choice1", "choice2", "choice3", "answer")
_NUM_CHOICES = 4


def read_subjects(path: Path, *, num_fewshot: int) -> list[LocalTask]:
    """Read one ``X_test.csv``, or all of a folder (or of ``test/`` in it, with the examples in ``dev/``).

    A row is question, four choices and the answer, which is a number from 0 or a letter; a header is optional.

    Raises:
        ValueError: there is no such file, the examples are missing, or a row is wrong; the message names the line.
    """
    if path.is_file():
        if not path.name.endswith("_test.csv"):
            raise ValueError(f"{path} is no MMLU test file: the name of one ends in _test.csv.")
        return [_read_subject(path, num_fewshot)]
    folder = path if list(path.glob("*_test.csv")) else path / "test"
    tests = sorted(folder.glob("*_test.csv"))
    if not tests:
        raise ValueError(f"The folder {path} has no MMLU files, such as anatomy_test.csv beside anatomy_dev.csv.")
    return [_read_subject(test, num_fewshot) for test in tests]


def _read_subject(path: Path, num_fewshot: int) -> LocalTask:
    stem = path.name.removesuffix("_test.csv")
    files = {path.name: sha256(path)}
    examples: list[dict[str, Any]] = []
    if num_fewshot:
        places = [path.with_name(f"{stem}_dev.csv"), path.parent.parent / "dev" / f"{stem}_dev.csv"]
        dev = next((place for place in places if place.is_file()), None)
        if dev is None:
            raise ValueError(
                f"{places[0]} is missing: the few-shot examples of {path.name} come from there. Put it beside that "
                "file, or set --num-fewshot 0."
            )
        examples = _rows(dev)
        files[dev.name] = sha256(dev)
    subject = stem.replace("_", " ")
    task = LocalTask(
        name=stem,
        form=Form.LETTERS,
        rows=_rows(path),
        examples=examples,
        description=f"The following are multiple choice questions (with answers) about {subject}.\n\n",
        files=files,
    )
    task.check_fewshot(num_fewshot)
    return task


def _rows(path: Path) -> list[dict[str, Any]]:
    rows = []
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file)
        try:
            for cells in reader:
                if not any(cell.strip() for cell in cells) or [cell.strip().lower() for cell in cells] == list(HEADER):
                    continue
                rows.append(_row(cells, f"{path}, line {reader.line_num}"))
        except (UnicodeDecodeError, csv.Error) as error:
            raise ValueError(f"{path} is no csv file in UTF-8: {error}.") from error
    if not rows:
        raise ValueError(f"{path} has no questions. A row holds {', '.join(HEADER)}.")
    return rows


def _row(cells: Sequence[str], place: str) -> dict[str, Any]:
    if len(cells) != len(HEADER):
        raise ValueError(f"{place} has {len(cells)} columns and not {len(HEADER)}: {', '.join(HEADER)}.")
    question, *choices, answer = cells
    answer = answer.strip().upper()
    gold = LETTERS.find(answer) if len(answer) == 1 and answer.isalpha() else int(answer) if answer.isdecimal() else -1
    if not 0 <= gold < _NUM_CHOICES:
        raise ValueError(f"{place}: the answer is {cells[-1]!r}; it is a number from 0 to 3, or a letter from A to D.")
    listed = "".join(f"\n{LETTERS[index]}. {choice}" for index, choice in enumerate(choices))
    return {"query": f"{question.strip()}{listed}\nAnswer:", "choices": list(LETTERS[:_NUM_CHOICES]), "gold": gold}
