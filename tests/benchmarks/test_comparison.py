"""The comparison of methods runs, in miniature."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from tests.benchmarks.test_benchmarks import run

pytestmark = pytest.mark.slow

TINY = ("--max-steps=3", "--batch-size=2", "--max-length=16", "--eval-sequences=2", "--ratios", "0.5")


def compared(out: Path, checkpoint: Path, data: Path, *options: str) -> str:
    own_model = ("--model", str(checkpoint), "--train", str(data), "--held-out", str(data))
    return run("benchmarks/comparison.py", "--out", str(out), *own_model, *TINY, *options)


def rows(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.read_text().splitlines()]


@pytest.mark.full
def test_methods_of_all_kinds_are_compared_and_finished_rows_are_kept(
    tmp_path: Path, checkpoint: Path, data: Path
) -> None:
    out = tmp_path / "rows.jsonl"
    compared(out, checkpoint, data, "--only", "default, global")
    first = rows(out)
    table = compared(out, checkpoint, data, "--only", "default, global", "Wanda", "depth", "block-wise", "PST")
    assert rows(out)[: len(first)] == first
    assert [row["method"] for row in rows(out)].count("default, global") == 1
    assert not [row["error"] for row in rows(out) if "error" in row]
    for name in ("default, global", "Wanda, structured, then LoRA", "depth: joint, `fisher`", "LLM-Pruner, block-wise"):
        assert re.search(rf"\| {re.escape(name)} \| \d+\.\d+", table)
    zeros = {row["method"]: row["zeros"] for row in rows(out)}
    assert zeros["Wanda, then LoRA (zeros)"] == pytest.approx(0.5, abs=0.01)
    assert zeros["PST (zeros)"] == pytest.approx(0.5, abs=0.01)


@pytest.mark.full
def test_a_row_that_failed_says_why_and_is_tried_again(tmp_path: Path, checkpoint: Path, data: Path) -> None:
    out = tmp_path / "rows.jsonl"
    failing = ("--only", "default, global", "--batch-size=0")
    table = compared(out, checkpoint, data, *failing)
    assert "| default, global | refused |" in table
    assert "error" in rows(out)[0]
    table = compared(out, checkpoint, data, "--only", "default, global", "--latency")
    assert re.search(r"\| default, global \| \d+\.\d+; \d+\.\d+ of the dense time \|", table)
    assert len(rows(out)) == 2
