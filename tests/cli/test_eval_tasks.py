"""``loraprune eval --tasks`` and ``--prompts``, from the command line to the file of results."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.checkpoints import tiny_checkpoint
from tests.cli.conftest import Command
from tests.metrics.tasks.conftest import choice_items, context_items, write_items

pytest.importorskip("lm_eval", reason="the extra 'evaluation' is not installed")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("models")
    room = {"max_position_embeddings": 128}
    return tiny_checkpoint(folder / "dense", **room), tiny_checkpoint(folder / "pruned", intermediate_size=32, **room)


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    return [
        write_items(tmp_path / "choices.jsonl", choice_items()),
        write_items(tmp_path / "contexts.jsonl", context_items()),
    ]


def test_two_models_are_scored_compared_and_kept(
    run: Command, models: tuple[Path, Path], files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    output = tmp_path / "results.json"
    command = ("eval", *models, "--tasks", *files, "--prompts", "the old", "--max-new-tokens", "3", "-o", output, "-q")
    finished = run(*command)
    assert finished.code == 0, finished.err
    assert finished.err == ""
    assert "average of 2" in finished.out
    assert "the old" in finished.out
    entries = json.loads(output.read_text(encoding="utf-8"))["entries"]
    tasks = [entry for entry in entries if entry["kind"] == "task"]
    assert [entry["name"] for entry in tasks] == ["choices.jsonl", "contexts.jsonl"] * 2
    assert all(entry["values"]["num_items"] == 20 for entry in tasks)
    assert set(tasks[0]["values"]) >= {"acc", "acc_stderr", "acc_norm", "acc_norm_stderr", "chance"}
    assert len(tasks[0]["data"]["sha256"]["choices.jsonl"]) == 64
    assert "lm_eval" in tasks[0]["versions"]
    again = run(*command)
    assert again.out == finished.out
    assert json.loads(output.read_text(encoding="utf-8"))["entries"] == entries


def test_prompts_and_tasks_go_through_the_chat_template(
    run: Command, models: tuple[Path, Path], files: list[Path], tmp_path: Path
) -> None:
    output = tmp_path / "results.json"
    command = (
        "eval",
        models[0],
        "--tasks",
        files[0],
        "--prompts",
        "the old",
        "--max-new-tokens",
        "3",
        "-o",
        output,
        "-q",
    )
    assert run(*command).code == 0
    finished = run(*command, "--apply-chat-template", "--system-prompt", "Be short.")
    assert finished.code == 0, finished.err
    assert "chat template, with this system prompt: Be short." in " ".join(finished.out.split())
    entries = json.loads(output.read_text(encoding="utf-8"))["entries"]
    asked = [(entry["settings"].get("chat_template"), entry["settings"].get("system_prompt")) for entry in entries]
    assert asked == [(None, None)] * 2 + [(True, "Be short.")] * 2
    plain, chat = (entry["values"]["completions"] for entry in entries if entry["kind"] == "completions")
    assert plain[0]["prompt"] == chat[0]["prompt"] == "the old"
    assert plain != chat


def test_ties_are_noted_and_kept(
    run: Command, models: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    items = [{"query": "one or", "choices": ["two", "two"], "gold": 1}, *choice_items(2)]
    file, output = write_items(tmp_path / "ties.jsonl", items), tmp_path / "results.json"
    finished = run("eval", models[0], "--tasks", file, "-o", output)
    assert "dense: several choices are equally likely, and the first one counts: ties.jsonl 1 of 3." in finished.out
    (entry,) = json.loads(output.read_text(encoding="utf-8"))["entries"]
    assert entry["values"]["num_tied"] == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--tasks", "choices.jsnl.jsonl"), "There is no task file choices.jsnl.jsonl. Did you mean choices.jsonl?"),
        (
            ("--tasks", "choices.jsonl", "--num-fewshot", "20"),
            "has 19 items for few-shot examples, and --num-fewshot is 20",
        ),
        (("--tasks", "choices.jsonl", "--max-length", "129"), "reads 128 tokens at most"),
        (("--prompts", "none.txt"), "The file of prompts none.txt cannot be read"),
        (("--prompts", "--sample", "--top-p", "2"), "--top-p must be above 0 and at most 1, not 2.0"),
    ],
)
@pytest.mark.usefixtures("files")
def test_what_is_wrong_is_said_in_a_line_before_a_model_is_loaded(
    run: Command,
    models: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    finished = run("eval", models[0], *arguments)
    assert finished.code == 2
    assert message in finished.err
    assert "Loading" not in finished.err
    assert not (tmp_path / "evaluation.json").exists()
