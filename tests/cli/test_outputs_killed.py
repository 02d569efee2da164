"""Runs that are killed while they replace a result: there is a complete one at every moment, and nothing stays."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROUNDS = 20
RUNS = """
import hashlib, os, random, signal, sys, time
from pathlib import Path
import torch
from loraprune.cli.main import main

torch.set_num_threads(1)
model, out, rounds = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])

def command(sparsity):
    return ["oneshot", model, "--criterion", "magnitude", "--sparsity", sparsity, "-o", str(out), "--overwrite", "-q"]

def run(sparsity, delay=None):
    started = time.time()
    child = os.fork()
    if child == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os._exit(main(command(sparsity)))
    if delay is not None:
        time.sleep(delay)
        os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    return status, time.time() - started

def content():
    return hashlib.sha256((out / "model.safetensors").read_bytes()).hexdigest()

main(["plan", model, "--ratio", "0.5", "--json"])  # what is imported lazily
wanted = {}
for sparsity in ("0.5", "0.25"):
    status, seconds = run(sparsity)
    assert status == 0, status
    wanted[sparsity] = content()
assert len(set(wanted.values())) == 2
random.seed(0)
killed = 0
for number in range(rounds):
    status, _ = run(("0.5", "0.25")[number % 2], delay=random.uniform(0.3, 1.05) * seconds)
    killed += status == signal.SIGKILL
    assert content() in wanted.values(), number
    assert {path.name for path in out.iterdir()} >= {"config.json", "pruning.json", "report.html"}
    others = [path.name for path in out.parent.iterdir() if path != out]
    assert all(name == ".out.lock" or name.endswith(".partial") for name in others), others
assert run("0.5")[0] == 0
assert content() == wanted["0.5"]
assert [path.name for path in out.parent.iterdir()] == ["out"]
print("killed", killed)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="other systems cannot exchange two folders in one step")
def test_a_run_that_is_killed_leaves_the_old_result_or_the_new_one(checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "outputs" / "out"
    done = subprocess.run(
        [sys.executable, "-c", RUNS, str(checkpoint), str(out), str(ROUNDS)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert int(done.stdout.split()[-1]) >= ROUNDS // 2
