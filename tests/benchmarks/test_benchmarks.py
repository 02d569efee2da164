"""The benchmarks run, in miniature: what they print is read by people and must not rot."""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def run(*arguments: str) -> str:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, check=False, env=environment, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.full
@pytest.mark.slow
def test_the_step_benchmark_prints_every_ratio() -> None:
    shown = run("benchmarks/step.py", "--layers", "1", "--repeats", "1", "--batch-size", "1", "--length", "8")
    for label in ("step with fisher", "step with lora", "cut to 50 % / dense", "forward pass"):
        assert re.search(rf"{label}.* \d+\.\d+x", shown), label
    assert shown.count("peak memory") == 2


@pytest.mark.full
@pytest.mark.slow
def test_the_allocation_benchmark_prints_every_allocation_and_goes_on_where_it_stopped(tmp_path: Path) -> None:
    small = ("--max-steps", "3", "--eval-sequences", "2", "--repeats", "1", "--tokens", "16", "--ratios", "0.5")
    out = tmp_path / "rows.jsonl"
    for allocations in (["global"], ["global", "uniform"]):
        shown = run("benchmarks/allocation.py", "--out", str(out), *small, "--allocations", *allocations)
        for allocation in allocations:
            assert re.search(rf"\| {allocation} \| 50% \| \d+\.\d+ .*1 seeds.* \| \d\.\d+ \|", shown), allocation
    assert len(out.read_text().splitlines()) == 2


@pytest.mark.parametrize("script", sorted((ROOT / "benchmarks").glob("*.py")), ids=lambda path: path.stem)
def test_every_script_finds_what_it_imports(script: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(script.parent))
    before = set(sys.modules)
    try:
        assert runpy.run_path(str(script), run_name="looked at")["__doc__"]
    finally:
        for name in set(sys.modules) - before:
            if Path(str(getattr(sys.modules[name], "__file__", None) or "/")).parent == script.parent:
                del sys.modules[name]


@pytest.mark.full
@pytest.mark.slow
def test_the_benchmark_of_two_processes_prints_its_ratios() -> None:
    sizes = ("--steps", "5", "--calibration-sequences", "2", "--segments", "16")
    shown = run("benchmarks/processes.py", "--rounds", "1", *sizes)
    for label in ("step", "oneshot", "eval"):
        assert re.search(rf"^{label}: .* s in one process, .* times as fast$", shown, re.MULTILINE), label
        assert re.search(rf"^{label}: .* s of CPU in one process, .* times as fast$", shown, re.MULTILINE), label
