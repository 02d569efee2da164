from __future__ import annotations

import io
import itertools
import re
from functools import partialmethod
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from loraprune.display import training
from loraprune.display.console import fitting
from loraprune.display.facts import fact_lines
from loraprune.display.training import TrainingProgress


def shown(monkeypatch: pytest.MonkeyPatch, *, terminal: bool, steps: int = 40_000, every: int = 4000) -> str:
    """What a long run of a large model prints."""
    clock = itertools.count(0.0, 100.0)
    monkeypatch.setattr(training.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(training.Progress, "update", partialmethod(training.Progress.update, refresh=True))
    file = io.StringIO()
    console = Console(file=file, force_terminal=terminal, width=80, color_system=None)
    progress = TrainingProgress(console)
    state: Any = SimpleNamespace(global_step=0, max_steps=steps)
    nothing: Any = None
    progress.on_train_begin(nothing, state, nothing)
    for step in range(every, steps + 1, every):
        state.global_step = step
        logs = {"loss": 12.3456, "sparsity_ratio": 0.499, "base_parameters": 6.74e9, "num_tokens": 1e9 * step}
        progress.evaluated(1.0, "held out 123.456")
        progress.on_log(nothing, state, nothing, logs)
        progress.on_step_end(nothing, state, nothing)
    progress.close()
    return file.getvalue()


def test_plain_lines_fit_80_columns_and_end_with_the_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = shown(monkeypatch, terminal=False).splitlines()
    assert len(lines) == 10
    assert max(map(len, lines)) <= 80
    assert lines[0] == "step 4000/40000  loss 12.346  held out 123.456"  # no step was measured yet
    assert all(line.endswith(" left") for line in lines[1:])


def test_the_live_line_fits_80_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    text = shown(monkeypatch, terminal=True)
    parts = re.sub(r"\x1b\[[?0-9]*[a-zA-Z]", "", text).replace("\r", "\n").split("\n")
    live = [part for part in parts if part.startswith("step ")]
    assert any("loss 12.346" in line for line in live)
    assert all(len(line) <= 80 for line in live)
    assert "…" not in text


def test_quiet_prints_nothing() -> None:
    file = io.StringIO()
    progress = TrainingProgress(Console(file=file), quiet=True)
    nothing: Any = None
    state: Any = SimpleNamespace(global_step=0, max_steps=2)
    progress.on_train_begin(nothing, state, nothing)
    for step in (1, 2):
        state.global_step = step
        progress.on_step_end(nothing, state, nothing)
    assert file.getvalue() == ""


def test_a_line_takes_the_parts_that_fit_in_their_order() -> None:
    assert fitting(["abc", "", "defgh", "ij"], 9) == "abc  ij"
    assert fitting(["abc"], 2) == ""


def test_facts_fit_80_columns_below_their_labels() -> None:
    lines = list(fact_lines("prune MODEL", [("model", "word " * 40), ("none", ""), ("output", "out\x1b[31m")]))
    assert lines[0] == "prune MODEL"
    assert all(len(line) <= 80 for line in lines)
    assert lines[1].startswith("  model      word")
    assert lines[2].startswith(" " * 13 + "word")
    assert not any(line.startswith("  none") or "\x1b" in line for line in lines)
