from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import datasets
import pytest
import transformers
from tests.finished_run import QUICK
from tests.thinned import thinned

from loraprune import OneshotConfig, PruningConfig, RunOptions, oneshot, prune, recover
from loraprune.pruning.errors import DryRunError

NOTHING = RunOptions(eval_sequences=0, latency=False)


def pruned(checkpoint: Path, data: Path, **given: Any) -> None:
    # One step is too few for the cuts that were asked for, so a warning comes.
    config = PruningConfig(ratio=0.5, criterion="magnitude", repair="none", cuts=2)
    prune(checkpoint, data, config, training=QUICK, options=NOTHING, **given)


@pytest.fixture(autouse=True)
def _as_python_leaves_it(monkeypatch: pytest.MonkeyPatch) -> None:
    logger = logging.getLogger("loraprune")
    monkeypatch.setattr(logger, "handlers", [])


def test_progress_shows_what_the_command_shows_and_leaves_no_trace(
    checkpoint: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    logger = logging.getLogger("loraprune")
    before = (logger.level, logger.propagate, list(logger.handlers))
    bars = datasets.are_progress_bars_disabled(), transformers.utils.logging.is_progress_bar_enabled()
    pruned(checkpoint, data, verbosity="progress")
    printed = capsys.readouterr()
    assert "6 steps of 4 rows" in printed.err
    assert "step 6/6" in printed.err
    assert "Loading " in printed.err
    assert printed.out == ""
    assert (logger.level, logger.propagate, list(logger.handlers)) == before
    assert bars == (datasets.are_progress_bars_disabled(), transformers.utils.logging.is_progress_bar_enabled())


@pytest.mark.parametrize("verbosity", thinned(["silent", "warnings"], 1))
def test_without_progress_nothing_of_the_run_is_shown(
    verbosity: str, checkpoint: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pruned(checkpoint, data, verbosity=verbosity)
    printed = capsys.readouterr()
    assert "step" not in printed.out + printed.err


@pytest.mark.parametrize(("verbosity", "heard"), [("warnings", True), ("silent", False)])
def test_silent_keeps_warnings_back(
    verbosity: str, heard: bool, checkpoint: Path, data: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = OneshotConfig(ratio=0.5, calibration_sequences=2)
    oneshot(checkpoint, data, config, options=NOTHING, verbosity=verbosity)
    assert ("calibration tokens are few" in caplog.text) == heard


def test_an_unknown_verbosity_is_refused_before_anything_is_read() -> None:
    for call in (prune, recover, oneshot):
        with pytest.raises(ValueError, match="verbosity is 'loud'; choose one of progress, warnings, silent"):
            call("no such model", "no such data", verbosity="loud")


def test_a_dry_run_from_python_ends_with_an_error_of_its_own(
    checkpoint: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = RunOptions(output=tmp_path / "out", dry_run=True)
    with pytest.raises(DryRunError):
        recover(checkpoint, data, training=QUICK, options=options)
    assert capsys.readouterr().out.startswith(f"recover {checkpoint}"[:40])
    assert not list(tmp_path.iterdir())
