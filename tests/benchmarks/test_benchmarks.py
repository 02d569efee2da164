"""The benchmarks run, in miniature: what they print is read by people and must not rot."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def run(*arguments: str) -> str:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, check=False, env=environment, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_step_benchmark_prints_every_ratio() -> None:
    shown = run("benchmarks/step.py", "--layers", "1", "--repeats", "1", "--batch-size", "1", "--length", "8")
    for label in ("step with fisher", "step with lora", "cut to 50 % / dense", "forward pass"):
        assert re.search(rf"{label}.* \d+\.\d+x", shown), label
    assert shown.count("peak memory") == 2
