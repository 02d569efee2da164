"""Completion as a shell asks for it: the line in the environment, the answers in a file."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("argcomplete")

ASKED = """
import sys, os
from loraprune.cli import main
real = os._exit
def leave(code):
    heavy = {"torch", "transformers", "datasets", "trl", "peft"} & set(sys.modules)
    real(9 if heavy else code)
os._exit = leave
main.main()
"""


def completed(line: str, folder: Path) -> set[str]:
    answers = folder / "answers"
    asked = {
        "_ARGCOMPLETE": "1",
        "_ARGCOMPLETE_IFS": "\n",
        "_ARGCOMPLETE_STDOUT_FILENAME": str(answers),
        "COMP_LINE": line,
        "COMP_POINT": str(len(line)),
        "COMP_TYPE": "9",
    }
    done = subprocess.run(
        [sys.executable, "-c", ASKED], env={**os.environ, **asked}, cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return {word.strip() for word in answers.read_text().split("\n")}


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("loraprune pr", {"prune"}),
        ("loraprune prune demo --lea", {"--learning-rate"}),
        ("loraprune prune demo --allocation ", {"measured", "balanced", "uniform", "global"}),
        ("loraprune plan llama-2-", {"llama-2-7b", "llama-2-13b", "llama-2-70b"}),
        ("loraprune oneshot d", {"demo", "data.jsonl"}),
        ("loraprune oneshot demo --data d", {"demo", "data.jsonl"}),
    ],
)
def test_the_shell_is_answered_without_large_imports(line: str, words: set[str], tmp_path: Path) -> None:
    (tmp_path / "data.jsonl").touch()
    assert completed(line, tmp_path) == words


def test_without_argcomplete_the_shell_gets_no_answer_and_no_traceback(tmp_path: Path) -> None:
    (tmp_path / "argcomplete.py").write_text("raise ImportError")
    paths = os.pathsep.join((str(tmp_path), os.environ.get("PYTHONPATH", "")))
    done = subprocess.run(
        [sys.executable, "-m", "loraprune"],
        env={**os.environ, "_ARGCOMPLETE": "1", "COMP_LINE": "loraprune p", "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "")
