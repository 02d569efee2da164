"""Local files of task items as tasks of lm-eval: JSON Lines of choices or contexts, and MMLU's csv files.

Prompts and scores follow the harness's own tasks of the same kind.
"""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

VERSION = 1.0
"""Version of the prompts of local files. It increases when one of our changes affects scores."""

NUM_FEWSHOT = 5
"""Number of examples before an MMLU question, as in the MMLU paper."""

_ACC = {"metric": "acc", "aggregation": "mean", "higher_is_better": True}
# Columns are named directly, not by templates, so braces in a text stay unchanged.
_CHOICES: Mapping[str, Any] = {"doc_to_text": "query", "doc_to_choice": "choices", "doc_to_target": "gold"}
# lm-eval's own WinoGrande scores one continuation after several contexts with a number as the text and a text as the
# target. All answers have the same length, so acc_norm would add nothing.
_CONTEXTS: Mapping[str, Any] = {"doc_to_text": "gold", "doc_to_choice": "contexts", "doc_to_target": "continuation"}

_FIELDS = {False: ("query", "choices", "gold"), True: ("context_options", "continuation", "gold")}
"""Settings for a JSON line, by whether its choices are contexts."""
_EXAMPLE = 'A line reads like {"query": "The sky is", "choices": ["blue", "square"], "gold": 0}.'

_HEADER = ["question", "choice0", "choice1", "choice2", "choice3", "answer"]


@dataclass(frozen=True, kw_only=True)
class LocalTask:
    """Items of one file, checked and ready to score.

    Attributes:
        name: name of the task, for tables.
        rows: items: ``{"query", "choices", "gold"}``, or ``{"contexts", "continuation", "gold"}`` if one continuation
            is scored after several contexts. ``gold`` counts from 0.
        asked: settings of lm-eval for prompts and scores.
        examples: rows that few-shot examples are taken from, in order; None draws them from the other items.
        files: SHA-256 of each file that was read, by its name.
    """

    name: str
    rows: Sequence[Mapping[str, Any]]
    asked: Mapping[str, Any]
    examples: Sequence[Mapping[str, Any]] | None = None
    files: Mapping[str, str]

    def check_fewshot(self, num_fewshot: int) -> None:
        """Check that there are enough examples.

        Raises:
            ValueError: there are too few.
        """
        available = len(self.rows) - 1 if self.examples is None else len(self.examples)
        if num_fewshot > available:
            raise ValueError(
                f"{self.name} has {available} items for few-shot examples, and --num-fewshot is {num_fewshot}. "
                f"Set --num-fewshot to at most {available}."
            )


def task_config(name: str, task: LocalTask) -> dict[str, Any]:
    """Return lm-eval's configuration of a task named ``name``."""

    def data(**_: Any) -> Any:
        from datasets import Dataset, DatasetDict

        splits = {"test": Dataset.from_list([dict(row) for row in task.rows])}
        if task.examples:
            splits["dev"] = Dataset.from_list([dict(row) for row in task.examples])
        return DatasetDict(splits)

    return {
        "task": name,
        "custom_dataset": data,
        "test_split": "test",
        "fewshot_split": "dev" if task.examples else "test",
        "fewshot_config": {"sampler": "first_n" if task.examples else "default"},
        "output_type": "multiple_choice",
        "metadata": {"version": VERSION},
        **task.asked,
    }


def group_config(name: str) -> dict[str, Any]:
    """Return the configuration of a group whose accuracy is weighted by task size, like that of MMLU."""
    return {
        "group": name,
        "aggregate_metric_list": [{"metric": "acc", "aggregation": "mean", "weight_by_size": True}],
        "metadata": {"version": VERSION},
    }


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def read_items(path: Path, name: str) -> LocalTask:
    """Read one item per line: ``{"query", "choices", "gold"}`` or ``{"context_options", "continuation", "gold"}``.

    White space around choices is removed; a query keeps its own. If every query ends in white space, query and choice
    are joined directly, else by one space.

    Raises:
        ValueError: a line is not such an item, or both forms occur; the message names the line.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: {error}. Save it as UTF-8.") from error
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            place = f"{path}, line {number}"
            row = _item(line, place)
            if rows and row.keys() != rows[0].keys():
                raise ValueError(f"{place} has a different form than the lines before it. Use one form in a file.")
            rows.append(row)
    if not rows:
        raise ValueError(f"{path} has no items. {_EXAMPLE}")
    files = {path.name: _sha256(path)}
    if "contexts" in rows[0]:
        return LocalTask(name=name, rows=rows, asked={**_CONTEXTS, "metric_list": [_ACC]}, files=files)
    apart = all(row["query"][-1].isspace() for row in rows)
    asked = {
        **_CHOICES,
        "target_delimiter": "" if apart else " ",
        "metric_list": [_ACC, {**_ACC, "metric": "acc_norm"}],
    }
    return LocalTask(name=name, rows=rows, asked=asked, files=files)


def _item(line: str, place: str) -> dict[str, Any]:
    try:
        item = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{place} is not JSON: {error}. {_EXAMPLE}") from error
    if not isinstance(item, dict):
        raise ValueError(f"{place} is not a JSON object. {_EXAMPLE}")
    of_contexts = "context_options" in item
    missing = [field for field in _FIELDS[of_contexts] if field not in item]
    if missing:
        raise ValueError(
            f"{place} lacks {' and '.join(map(repr, missing))}. It needs "
            f"{', '.join(_FIELDS[False])}, or {', '.join(_FIELDS[True])}."
        )
    if of_contexts:
        contexts = _texts(item["context_options"], "context_options", place)
        (continuation,) = _texts([item["continuation"]], "continuation", place, at_least=1)
        return {"contexts": contexts, "continuation": continuation, "gold": _gold(item["gold"], len(contexts), place)}
    query = item["query"]
    if not isinstance(query, str) or not query.strip():
        raise ValueError(f"{place}: 'query' must be text that is not empty, not {query!r}.")
    choices = _texts(item["choices"], "choices", place)
    return {"query": query, "choices": choices, "gold": _gold(item["gold"], len(choices), place)}


def _texts(value: Any, field: str, place: str, at_least: int = 2) -> list[str]:
    if not isinstance(value, list) or len(value) < at_least:
        raise ValueError(f"{place}: {field!r} must be a list of at least {at_least} texts, not {value!r}.")
    for text in value:
        if not isinstance(text, str) or not text.strip():
            raise ValueError(f"{place}: {field!r} must hold texts that are not empty, not {text!r}.")
    return [text.strip() for text in value]


def _gold(value: Any, num_choices: int, place: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < num_choices:
        raise ValueError(
            f"{place}: 'gold' is {value!r}; it is the number of the right choice, counted from 0, here 0 to "
            f"{num_choices - 1}."
        )
    return value


# MMLU's subjects: ``X_test.csv`` with the few-shot examples of ``X_dev.csv``.


def read_subjects(path: Path, *, num_fewshot: int) -> list[LocalTask]:
    """Read one ``X_test.csv``, or all files of a folder (or of its ``test/``, with the examples in ``dev/``).

    A row has a question, four choices and the answer, which is a letter or a number from 0. A header is optional.

    Raises:
        ValueError: there is no such file, the examples are missing, or a row is wrong; the message names the line.
    """
    if path.is_file():
        if not path.name.endswith("_test.csv"):
            raise ValueError(f"{path} is not an MMLU test file: its name must end in _test.csv.")
        return [_read_subject(path, num_fewshot)]
    tests = sorted(path.glob("*_test.csv")) or sorted((path / "test").glob("*_test.csv"))
    if not tests:
        raise ValueError(f"The folder {path} has no MMLU files, such as anatomy_test.csv beside anatomy_dev.csv.")
    return [_read_subject(test, num_fewshot) for test in tests]


def _read_subject(path: Path, num_fewshot: int) -> LocalTask:
    stem = path.name.removesuffix("_test.csv")
    files = {path.name: _sha256(path)}
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
        files[dev.name] = _sha256(dev)
    about = stem.replace("_", " ")
    head = f"The following are multiple choice questions (with answers) about {about}.\n\n"
    asked = {**_CHOICES, "description": head, "metric_list": [_ACC]}
    task = LocalTask(name=stem, rows=_rows(path), examples=examples, asked=asked, files=files)
    task.check_fewshot(num_fewshot)
    return task


def _rows(path: Path) -> list[dict[str, Any]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file)
        try:
            rows = [
                _row(cells, f"{path}, line {reader.line_num}")
                for cells in reader
                if any(cell.strip() for cell in cells) and [cell.strip().lower() for cell in cells] != _HEADER
            ]
        except (UnicodeDecodeError, csv.Error) as error:
            raise ValueError(f"{path} is not a csv file in UTF-8: {error}.") from error
    if not rows:
        raise ValueError(f"{path} has no questions. A row holds {', '.join(_HEADER)}.")
    return rows


def _row(cells: Sequence[str], place: str) -> dict[str, Any]:
    if len(cells) != len(_HEADER):
        raise ValueError(f"{place} has {len(cells)} columns and not {len(_HEADER)}: {', '.join(_HEADER)}.")
    question, *choices, answer = cells
    letters, answer = "ABCD", answer.strip().upper()
    gold = letters.find(answer) if len(answer) == 1 and answer.isalpha() else int(answer) if answer.isdecimal() else -1
    if not 0 <= gold < len(letters):
        raise ValueError(f"{place}: the answer is {cells[-1]!r}; it is a number from 0 to 3, or a letter from A to D.")
    listed = "".join(f"\n{letter}. {choice}" for letter, choice in zip(letters, choices, strict=True))
    return {"query": f"{question.strip()}{listed}\nAnswer:", "choices": list(letters), "gold": gold}
