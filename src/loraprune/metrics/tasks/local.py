"""Local files of task items as tasks of lm-eval: JSON Lines of choices or contexts, and MMLU's csv files."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

# A local file of task items, checked and ready to be asked.

LETTERS = "ABCDEFGHIJ"


class Form(Enum):
    """How the choices of an item are asked."""

    CHOICES = "choices"
    """One query, and a choice is what may follow it."""
    CONTEXTS = "contexts"
    """A choice is what comes before, and one continuation follows all of them: WinoGrande."""
    LETTERS = "letters"
    """The choices are listed in the question, and the answer is a letter: MMLU."""


@dataclass(frozen=True, kw_only=True)
class LocalTask:
    """Items of one file, all of one form.

    Attributes:
        name: of the task, for tables.
        form: how they are asked.
        rows: of :attr:`Form.CHOICES` and :attr:`Form.LETTERS` ``{"query", "choices", "gold"}``; of
            :attr:`Form.CONTEXTS` ``{"contexts", "continuation", "gold"}``. ``gold`` counts from 0.
        examples: rows that few-shot examples are taken from, in order; None if they are drawn from the other items.
        description: what stands before the first example.
        delimiter: between what is asked and the answer.
        files: SHA-256 of each file that was read, by its name.
    """

    name: str
    form: Form
    rows: Sequence[Mapping[str, Any]]
    examples: Sequence[Mapping[str, Any]] | None = None
    description: str = ""
    delimiter: str = " "
    files: Mapping[str, str]

    def check_fewshot(self, num_fewshot: int) -> None:
        """Check that there are examples enough.

        Raises:
            ValueError: there are fewer.
        """
        available = len(self.rows) - 1 if self.examples is None else len(self.examples)
        if num_fewshot > available:
            raise ValueError(
                f"{self.name} has {available} items for few-shot examples, and {num_fewshot} were asked for. "
                f"Set --num-fewshot to at most {available}."
            )


def sha256(path: Path) -> str:
    """Hash of a file's content."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


FIELDS = {Form.CHOICES: ("query", "choices", "gold"), Form.CONTEXTS: ("context_options", "continuation", "gold")}


def read_items(path: Path, name: str) -> LocalTask:
    """Read one item a line: ``{"query", "choices", "gold"}`` or ``{"context_options", "continuation", "gold"}``.

    Choices lose the white space around them; a query keeps its own. If every query ends in white space, nothing is put
    between query and choice, else one space.

    Raises:
        ValueError: a line is no such item, or lines are of both forms; the message names the line.
    """
    form: Form | None = None
    rows: list[dict[str, Any]] = []
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no UTF-8 text: {error}. Save it as UTF-8.") from error
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        place = f"{path}, line {number}"
        item = _object(line, place)
        own = _form(item, place)
        if form is not None and own is not form:
            raise ValueError(f"{place} is of another form than the lines before. Put one form into a file.")
        form = own
        rows.append(_choices(item, place) if form is Form.CHOICES else _contexts(item, place))
    if form is None:
        raise ValueError(f"{path} has no items. A line reads like " + _example() + ".")
    apart = form is Form.CHOICES and all(row["query"][-1].isspace() for row in rows)
    files = {path.name: sha256(path)}
    return LocalTask(name=name, form=form, rows=rows, delimiter="" if apart else " ", files=files)


def _object(line: str, place: str) -> dict[str, Any]:
    try:
        item = json.loads(line)
    except ValueError as error:
        raise ValueError(f"{place} is no JSON: {error}. A line reads like {_example()}.") from error
    if not isinstance(item, dict):
        raise ValueError(f"{place} is no JSON object. A line reads like {_example()}.")
    return item


def _form(item: Mapping[str, Any], place: str) -> Form:
    form = Form.CONTEXTS if "context_options" in item else Form.CHOICES
    missing = [field for field in FIELDS[form] if field not in item]
    if missing:
        raise ValueError(
            f"{place} lacks {' and '.join(map(repr, missing))}. It needs "
            f"{', '.join(FIELDS[Form.CHOICES])}, or {', '.join(FIELDS[Form.CONTEXTS])}."
        )
    return form


def _choices(item: Mapping[str, Any], place: str) -> dict[str, Any]:
    query = item["query"]
    if not isinstance(query, str) or not query.strip():
        raise ValueError(f"{place}: 'query' must be text that is not empty, not {query!r}.")
    choices = _texts(item["choices"], "choices", place)
    return {"query": query, "choices": choices, "gold": _gold(item["gold"], len(choices), place)}


def _contexts(item: Mapping[str, Any], place: str) -> dict[str, Any]:
    contexts = _texts(item["context_options"], "context_options", place)
    (continuation,) = _texts([item["continuation"]], "continuation", place, at_least=1)
    return {
        "contexts": contexts,
        "continuation": continuation,
        "gold": _gold(item["gold"], len(contexts), place),
    }


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


def _example() -> str:
    return '{"query": "The sky is", "choices": ["blue", "square"], "gold": 0}'


# Local task files as tasks of lm-eval: asked and scored as the harness' own tasks of the kind are.

VERSION = 1.0
"""Of how local files are asked; goes up when a change of ours changes scores."""

_ACC = {"metric": "acc", "aggregation": "mean", "higher_is_better": True}
_ACC_NORM = {"metric": "acc_norm", "aggregation": "mean", "higher_is_better": True}

# Columns are named as they are, not through templates, so that braces in a text stay what they are.
_ASKED: dict[Form, dict[str, Any]] = {
    Form.CHOICES: {
        "doc_to_text": "query",
        "doc_to_choice": "choices",
        "doc_to_target": "gold",
        "metric_list": [_ACC, _ACC_NORM],
    },
    # A number for the text and a text for the target is how lm-eval's own WinoGrande asks for one continuation of
    # several contexts. All answers have one length there, so that acc_norm would say nothing.
    Form.CONTEXTS: {
        "doc_to_text": "gold",
        "doc_to_choice": "contexts",
        "doc_to_target": "continuation",
        "metric_list": [_ACC],
    },
    Form.LETTERS: {
        "doc_to_text": "query",
        "doc_to_choice": "choices",
        "doc_to_target": "gold",
        "metric_list": [_ACC],
    },
}


def task_configs(name: str, subjects: Sequence[LocalTask]) -> list[dict[str, Any]]:
    """Configurations of one file, which is called ``name``, or of several, called as they are."""
    return [_task_config(name if len(subjects) == 1 else subject.name, subject) for subject in subjects]


def group_config(name: str) -> dict[str, Any]:
    """The configuration of a group whose accuracy is weighted by the sizes of its tasks, as that of MMLU is."""
    return {
        "group": name,
        "aggregate_metric_list": [{"metric": "acc", "aggregation": "mean", "weight_by_size": True}],
        "metadata": {"version": VERSION},
    }


def _task_config(name: str, task: LocalTask) -> dict[str, Any]:
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
        "description": task.description,
        "target_delimiter": task.delimiter,
        "metadata": {"version": VERSION},
        **_ASKED[task.form],
    }


# Reads MMLU subjects from csv files: ``X_test.csv`` with the few-shot examples of ``X_dev.csv``.

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
