"""Reads JSON Lines of task items: a query with choices, or contexts with one continuation."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from loraprune.metrics.tasks.tasks_local import Form, LocalTask, sha256

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
