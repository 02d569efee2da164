from __future__ import annotations

import importlib.util
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tests.metrics.tasks.conftest import choice_items, write_items, write_subject

from loraprune.metrics.tasks import COMMONSENSE, check_tasks, choosing


def entry(kind: str = "TASK", tags: frozenset[str] = frozenset(), **config: Any) -> SimpleNamespace:
    return SimpleNamespace(kind=SimpleNamespace(name=kind), cfg=config, tags=tags)


@pytest.fixture
def index(monkeypatch: pytest.MonkeyPatch) -> dict[str, SimpleNamespace]:
    """A few entries instead of lm-eval's fourteen thousand, which take seconds to read."""
    entries = {name: entry(dataset_path=f"hub/{name}", metadata={"version": 2.0}) for name in COMMONSENSE}
    entries |= {
        "mmlu": entry("GROUP"),
        "gsm8k": entry(num_fewshot=5),
        "ai2_arc": entry("TAG", frozenset(COMMONSENSE[4:6])),
    }
    monkeypatch.setattr(choosing, "harness_index", lambda: entries)
    return entries


@pytest.mark.usefixtures("index")
def test_commonsense_is_the_seven_tasks_of_the_paper() -> None:
    chosen = check_tasks(["commonsense"])
    assert tuple(task.name for task in chosen) == COMMONSENSE
    assert {task.group for task in chosen} == {"commonsense"}
    assert chosen[0].data == {"harness": "lm-eval", "dataset": "hub/boolq", "version": 2.0}


@pytest.mark.usefixtures("index")
def test_a_tag_stands_for_its_tasks() -> None:
    assert [task.name for task in check_tasks(["ai2_arc"])] == ["arc_challenge", "arc_easy"]


@pytest.mark.usefixtures("index")
def test_what_is_named_twice_is_scored_once(tmp_path: Path) -> None:
    path = str(write_items(tmp_path / "a.jsonl", choice_items(3)))
    chosen = check_tasks(["piqa", "commonsense", "piqa", path, path])
    assert [task.name for task in chosen] == ["piqa", *(name for name in COMMONSENSE if name != "piqa"), "a.jsonl"]


@pytest.mark.usefixtures("index")
def test_examples_are_five_for_mmlu_and_what_a_task_says_else() -> None:
    assert [task.num_fewshot for task in check_tasks(["mmlu", "gsm8k", "piqa"])] == [5, 5, None]
    assert [task.num_fewshot for task in check_tasks(["mmlu", "gsm8k", "piqa"], num_fewshot=1)] == [1, 1, 1]


@pytest.mark.usefixtures("index")
@pytest.mark.parametrize(
    ("name", "near"), [("piqq", "piqa"), ("commonsens", "commonsense"), ("hellaswagg", "hellaswag")]
)
def test_a_typing_error_gets_a_suggestion(name: str, near: str) -> None:
    with pytest.raises(ValueError, match=f"There is no task '{name}'. Did you mean .*{near}"):
        check_tasks([name])


@pytest.mark.usefixtures("index")
def test_a_missing_file_gets_a_suggestion(tmp_path: Path) -> None:
    write_items(tmp_path / "items.jsonl", choice_items(3))
    with pytest.raises(ValueError, match=r"There is no task file .*item\.jsonl\. Did you mean .*items\.jsonl"):
        check_tasks([str(tmp_path / "item.jsonl")])
    with pytest.raises(ValueError, match="There is no folder"):
        check_tasks([str(tmp_path / "none" / "item.jsonl")])
    (tmp_path / "items.txt").write_text("x", encoding="utf-8")
    with pytest.raises(ValueError, match="is not a task file"):
        check_tasks([str(tmp_path / "items.txt")])


@pytest.mark.usefixtures("index")
def test_a_folder_of_the_name_of_a_task_needs_a_slash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_subject(tmp_path / "mmlu", "birds")
    write_subject(tmp_path / "own", "birds")
    monkeypatch.chdir(tmp_path)
    plain, folder, own = check_tasks(["mmlu", "./mmlu", "own"])
    assert (plain.name, folder.name, own.name) == ("mmlu", "mmlu/", "own/")
    assert not plain.subjects
    assert folder.subjects
    assert folder.num_fewshot == own.num_fewshot == 5


@pytest.mark.usefixtures("index")
def test_files_carry_their_hashes_and_two_of_one_name_are_refused(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    first = write_items(tmp_path / "a.jsonl", choice_items(3))
    second = write_items(tmp_path / "other" / "a.jsonl", choice_items(4))
    (task,) = check_tasks([str(first)])
    assert list(task.data["sha256"]) == ["a.jsonl"]
    with pytest.raises(ValueError, match=r"Two of the tasks are called a\.jsonl"):
        check_tasks([str(first), str(second)])


@pytest.mark.usefixtures("index")
def test_examples_that_a_file_does_not_have_are_refused(tmp_path: Path) -> None:
    path = str(write_items(tmp_path / "a.jsonl", choice_items(3)))
    assert check_tasks([path], num_fewshot=2)
    with pytest.raises(ValueError, match=r"a\.jsonl has 2 items for few-shot examples, and --num-fewshot is 3"):
        check_tasks([path], num_fewshot=3)


@pytest.mark.parametrize(("option", "message"), [({"limit": 0}, "--limit"), ({"num_fewshot": -1}, "--num-fewshot")])
def test_numbers_out_of_range_are_refused(option: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_tasks(["piqa"], **option)


def test_without_lm_eval_it_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r'pip install "loraprune\[evaluation\]"'):
        check_tasks(["piqa"])


@pytest.mark.slow
def test_the_harness_has_the_tasks_that_we_name() -> None:
    assert [task.data["harness"] for task in check_tasks(["commonsense", "mmlu"])] == ["lm-eval"] * 8
    with pytest.raises(ValueError, match="Did you mean piqa"):
        check_tasks(["piqaa"])
