from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from loraprune.metrics.tasks.local import read_items

GOOD = {"query": "The sky is", "choices": ["blue", "square"], "gold": 0}
CONTEXTS = {"context_options": ["Ann is", "Bea is"], "continuation": "here.", "gold": 1}


def written(path: Path, *lines: Any) -> Path:
    text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    path.write_text(text, encoding="utf-8")
    return path


def test_choices_lose_the_space_around_them_and_queries_keep_theirs(tmp_path: Path) -> None:
    path = written(tmp_path / "t.jsonl", {**GOOD, "query": " The sky\nis ", "choices": [" blue ", "square\n"], "id": 7})
    task = read_items(path, "t")
    assert task.rows == [{"query": " The sky\nis ", "choices": ["blue", "square"], "gold": 0}]
    assert task.files == {"t.jsonl": hashlib.sha256(path.read_bytes()).hexdigest()}


def test_nothing_is_put_between_query_and_choice_if_every_query_ends_in_white_space(tmp_path: Path) -> None:
    with_break = {**GOOD, "query": "The sky is\n"}
    assert read_items(written(tmp_path / "a.jsonl", with_break, with_break), "a").asked["target_delimiter"] == ""
    assert read_items(written(tmp_path / "b.jsonl", with_break, GOOD), "b").asked["target_delimiter"] == " "


def test_contexts_are_read_as_winogrande_has_them(tmp_path: Path) -> None:
    task = read_items(written(tmp_path / "t.jsonl", CONTEXTS, "", CONTEXTS), "t")
    assert task.asked["doc_to_target"] == "continuation"
    assert task.rows[1] == {"contexts": ["Ann is", "Bea is"], "continuation": "here.", "gold": 1}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2 is not JSON"),
        ("[1]", "line 2 is not a JSON object"),
        ({"query": "x", "gold": 0}, "line 2 lacks 'choices'"),
        ({"context_options": ["a", "b"]}, "line 2 lacks 'continuation' and 'gold'"),
        ({**GOOD, "gold": 2}, "line 2: 'gold' is 2; .* here 0 to 1"),
        ({**GOOD, "gold": -1}, "'gold' is -1"),
        ({**GOOD, "gold": "0"}, "'gold' is '0'"),
        ({**GOOD, "gold": True}, "'gold' is True"),
        ({**GOOD, "choices": ["blue"]}, "at least 2 texts"),
        ({**GOOD, "choices": "blue"}, "at least 2 texts"),
        ({**GOOD, "choices": ["blue", " "]}, "'choices' must hold texts that are not empty"),
        ({**GOOD, "choices": ["blue", 3]}, "not 3"),
        ({**GOOD, "query": " "}, "'query' must be text that is not empty"),
        (CONTEXTS, "line 2 has a different form than the lines before"),
    ],
)
def test_a_wrong_line_is_named_with_what_is_wrong(tmp_path: Path, line: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_items(written(tmp_path / "t.jsonl", GOOD, line), "t")


def test_an_empty_continuation_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="line 1: 'continuation' must hold texts that are not empty"):
        read_items(written(tmp_path / "t.jsonl", {**CONTEXTS, "continuation": ""}), "t")


def test_a_file_without_items_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has no items"):
        read_items(written(tmp_path / "t.jsonl", "", ""), "t")


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_bytes(b"\xff\xfe\x00x")
    with pytest.raises(ValueError, match="not UTF-8 text"):
        read_items(path, "t")
