from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from loraprune.tasks import event_files
from loraprune.tasks.event_files import check_report_to, copy_event_files


def arguments(*names: str) -> Any:
    return SimpleNamespace(report_to=list(names))


def test_nothing_is_wanted_by_default() -> None:
    check_report_to(arguments())
    check_report_to(arguments("none"))


def test_a_name_with_a_typo_is_told_the_right_one() -> None:
    with pytest.raises(ValueError, match=r"'tensorbord', which is none of .* Did you mean 'tensorboard'\?"):
        check_report_to(arguments("tensorbord"))


def test_a_package_that_is_missing_is_named_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        event_files, "find_spec", lambda name: None if name in ("wandb", "trackio") else find_spec(name)
    )
    with pytest.raises(ValueError, match=r"package wandb is not installed. Install it \(pip install wandb\)"):
        check_report_to(arguments("wandb"))


def test_every_package_is_that_of_an_integration() -> None:
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

    assert set(event_files.EVENT_PACKAGES) <= set(INTEGRATION_TO_CALLBACK)


def test_a_copy_that_fails_is_told_and_loses_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(source: Path, target: Path) -> None:
        target.mkdir(parents=True)
        raise OSError("no more room")

    monkeypatch.setattr(event_files.shutil, "copytree", fail)
    (tmp_path / "run" / "runs").mkdir(parents=True)
    copy_event_files(tmp_path / "run", tmp_path / "out")
    assert "could not be copied: no more room" in caplog.text
    assert not (tmp_path / "out" / "runs").exists()


def test_event_files_are_copied_where_there_are_any(tmp_path: Path) -> None:
    run, out = tmp_path / "run", tmp_path / "out"
    out.mkdir()
    copy_event_files(run, out)
    assert list(out.iterdir()) == []
    (run / "runs" / "today").mkdir(parents=True)
    (run / "runs" / "today" / "events").write_text("x")
    copy_event_files(run, out)
    assert (out / "runs" / "today" / "events").read_text() == "x"
