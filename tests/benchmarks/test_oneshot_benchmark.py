"""The benchmark of training-free pruning runs, in miniature."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from tests.benchmarks.test_benchmarks import run

pytestmark = pytest.mark.slow

TINY = ("--calibration-sequences", "4", "--max-length", "16", "--eval-sequences", "2", "--ratios", "0.5")


@pytest.fixture
def own_model(checkpoint: Path, data: Path) -> list[str]:
    """Options for a tiny model and its text, in place of the bundled ones."""
    return ["--model", str(checkpoint), "--train", str(data), "--held-out", str(data)]


def shown(part: str, out: Path, *options: str) -> str:
    return run("benchmarks/oneshot.py", part, "--out", str(out), *TINY, *options)


def rows(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.read_text().splitlines()]


@pytest.mark.full
def test_a_score_with_a_repair_is_measured_on_the_bundled_model(tmp_path: Path) -> None:
    out = tmp_path / "rows.jsonl"
    table = shown("structured", out, "--model", "demo", "--only", "magnitude, refit")
    assert re.search(r"demo, structured: dense \d+\.\d+, 16-token segments", table)
    assert re.search(r"\| magnitude, refit, uniform \| \d+\.\d+ \|", table)
    (row,) = rows(out)
    assert row["reached"] == pytest.approx(0.5, abs=0.02)


@pytest.mark.full
def test_sparse_methods_are_compared_over_patterns_and_an_interrupted_run_goes_on(
    tmp_path: Path, own_model: list[str]
) -> None:
    out = tmp_path / "rows.jsonl"
    shown("sparse", out, *own_model, "--only", "sparsegpt")
    first = rows(out)
    table = shown("sparse", out, *own_model, "--only", "wanda", "sparsegpt")
    assert "| | 0.5 | 4:8 | 2:4 |" in table
    assert re.search(r"\| wanda \| \d+\.\d+ \| \d+\.\d+ \| \d+\.\d+ \|", table)
    assert re.search(r"\| sparsegpt \| \d+\.\d+ \| \d+\.\d+ \| \d+\.\d+ \|", table)
    assert re.search(r"\| wanda, variant \| \d+\.\d+ \| – \| – \|", table)
    assert rows(out)[: len(first)] == first
    assert all(row["variant"] != "sparsegpt" for row in rows(out)[len(first) :])
    assert all(row["reached"] == pytest.approx(0.5, abs=0.01) for row in rows(out))


@pytest.mark.full
def test_recovery_shows_the_perplexity_before_and_after(tmp_path: Path, own_model: list[str]) -> None:
    out = tmp_path / "rows.jsonl"
    table = shown("recovery", out, *own_model, "--only", "one shot", "--max-steps", "2", "--tuning-length", "16")
    assert rows(out)
    for row in rows(out):
        assert row["variant"].startswith("one shot")
        assert re.search(rf"\| {re.escape(row['variant'])} \| \d+\.\d+ \(\d+\.\d+\) \|", table)
        assert row["before"] != row["perplexity"]
