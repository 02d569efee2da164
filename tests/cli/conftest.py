"""Commands run in this process, and a checkpoint and data for them."""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import datasets
import pytest
import transformers
from transformers import dynamic_module_utils

from loraprune.cli.main import main

QUICK = [
    "--max-steps=4",
    "--max-length=32",
    "--per-device-train-batch-size=4",
    "--calibration-sequences=16",
    "--no-latency",
]
"""Options of a run of a fraction of a second."""


BEGINNING = re.compile(r"^loraprune \S+ · .*\n", re.MULTILINE)


@dataclass(frozen=True)
class Finished:
    """What a command left: its exit code and what it printed, without the line that says what begins."""

    code: int
    out: str
    err: str


Command = Callable[..., Finished]


@pytest.fixture
def _quiet_again(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Undo what a command sets for its whole process."""
    for name in ("HF_HUB_DISABLE_TELEMETRY", "HF_HUB_OFFLINE", "TOKENIZERS_PARALLELISM"):
        monkeypatch.setenv(name, os.environ.get(name, "1"))
    logger = logging.getLogger("loraprune")
    handlers, propagate, level = logger.handlers, logger.propagate, logger.level
    verbosity = transformers.utils.logging.get_verbosity()
    yield
    logger.handlers, logger.propagate = handlers, propagate
    logger.setLevel(level)
    transformers.utils.logging.set_verbosity(verbosity)
    transformers.utils.logging.enable_progress_bar()
    datasets.enable_progress_bars()


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], _quiet_again: None) -> Command:
    """Runs ``loraprune …`` in this process."""

    def command(*arguments: str | Path) -> Finished:
        capsys.readouterr()
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as exit:
            code = int(exit.code or 0)
        printed = capsys.readouterr()
        return Finished(code, printed.out, BEGINNING.sub("", printed.err, count=1))

    return command


@pytest.fixture
def _own_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Code that a checkpoint brings is copied to a place of this test's own, and forgotten afterwards."""
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield
    for name in [name for name in sys.modules if name.split(".")[0] == "transformers_modules"]:
        del sys.modules[name]
