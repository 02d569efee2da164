"""Every wrong invocation ends at once, with one line that names the thing and the remedy, and writes nothing."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import pytest
from tests.cli.conftest import Command
from tests.cli.refusals import models, options, recipes, results, texts
from tests.cli.refusals.wrong import Wrong

from loraprune.cli.main import COMMANDS

TABLE: tuple[Wrong, ...] = (*options.TABLE, *recipes.TABLE, *models.TABLE, *texts.TABLE, *results.TABLE)

SECONDS = 10


def files_of(folder: Path) -> dict[str, bytes | None]:
    """The content of every file in a folder, hidden ones too; None where it is no regular file."""
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


@pytest.mark.parametrize("row", [pytest.param(row, id=f"{number}: {row.line}") for number, row in enumerate(TABLE)])
def test_is_refused(
    row: Wrong, run: Command, checkpoint: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "here"
    folder.mkdir()
    shutil.copytree(checkpoint, folder / "model")
    shutil.copy(data, folder / "data.jsonl")
    row.prepare(folder)
    monkeypatch.chdir(folder)
    before = files_of(folder)

    began = time.monotonic()
    finished = run(*row.arguments)
    took = time.monotonic() - began

    assert finished.code == 2, finished.err
    *_usage, answer = finished.err.strip().splitlines() or [""]
    assert finished.err.count("error:") == 1, finished.err
    assert "error:" in answer, finished.err
    assert "Traceback" not in finished.err
    for part in row.says:
        assert part in answer, answer
    assert files_of(folder) == before
    assert took < SECONDS


def test_every_command_has_rows_and_all_are_many() -> None:
    assert {row.arguments[0] for row in TABLE} >= set(COMMANDS)
    assert len(TABLE) >= 250
