"""Signals as a shell, SLURM, Kubernetes or docker sends them, to commands in processes of their own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.cli.conftest import Command
from tests.thinned import thinned
from transformers import AutoModelForCausalLM

STEPS = 150
SHORT = ["--max-length=32", "--per-device-train-batch-size=4", f"--max-steps={STEPS}"]
ONCE = ["--max-length=32", "--calibration-sequences=16", "--eval-sequences=0", "--no-latency"]


def start(folder: Path, *arguments: str | Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "loraprune", *map(str, arguments)],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "TMPDIR": str(folder)},
        # A shell lets what it runs in the background ignore Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def wait_for(process: subprocess.Popen[str], beginning: str) -> None:
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith(beginning):
            return
    raise AssertionError(f"no line began with {beginning!r}")


@pytest.mark.parametrize("command", ["prune", pytest.param("recover", marks=[pytest.mark.slow, pytest.mark.full])])
def test_sigterm_saves_and_resume_finishes(
    command: str, run: Command, checkpoint: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = [command, checkpoint, "--data", data, "-o", "out", *SHORT, "--eval-sequences=0"]
    process = start(tmp_path, *arguments)
    wait_for(process, "step ")
    process.terminate()
    out, err = process.communicate(timeout=120)
    assert (process.returncode, out) == (143, ""), err
    message = err.splitlines()[-1]
    assert message.startswith("Stopped at step ")
    assert "--resume" in message
    assert "Traceback" not in err
    assert [path.name for path in tmp_path.iterdir()] == ["out.run"]

    monkeypatch.chdir(tmp_path)
    again = run(*arguments, "--resume")
    assert again.code == 0, again.err
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").num_parameters() > 0
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_sigterm_leaves_what_a_run_without_training_has_finished(checkpoint: Path, data: Path, tmp_path: Path) -> None:
    process = start(tmp_path, "oneshot", checkpoint, "--data", data, "-o", "out", *ONCE, "--ratio=0.5", "--cuts=300")
    wait_for(process, "cutting 2/300 ")
    process.terminate()
    out, err = process.communicate(timeout=120)
    assert (process.returncode, out) == (143, ""), err
    assert err.splitlines()[-1].startswith("Stopped; nothing was written to the output folder.")
    assert "--resume" in err.splitlines()[-1]
    assert "Traceback" not in err
    assert [path.name for path in tmp_path.iterdir()] == ["out.run"]


@pytest.mark.full
@pytest.mark.slow
def test_ctrl_c_keeps_what_was_finished(checkpoint: Path, data: Path, tmp_path: Path) -> None:
    process = start(tmp_path, "oneshot", checkpoint, "--data", data, "-o", "out", *ONCE, "--ratio=0.5", "--cuts=300")
    wait_for(process, "cutting 2/300 ")
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert (process.returncode, out) == (130, ""), err
    assert err.splitlines()[-1].startswith("Stopped; nothing was written to the output folder.")
    assert "--resume" in err.splitlines()[-1]
    assert "Traceback" not in err
    assert [path.name for path in tmp_path.iterdir()] == ["out.run"]


@pytest.mark.full
@pytest.mark.slow
def test_sigterm_ends_a_comparison_of_criteria(checkpoint: Path, data: Path, tmp_path: Path) -> None:
    arguments = ["compare-criteria", checkpoint, "--data", data, "--criteria", "fisher,magnitude", *SHORT[:2]]
    process = start(tmp_path, *arguments, f"--steps={STEPS}", "--output=agreement.json")
    wait_for(process, "step ")
    process.terminate()
    out, err = process.communicate(timeout=120)
    assert (process.returncode, out) == (143, ""), err
    assert err.splitlines()[-1].startswith("Stopped")
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
@pytest.mark.parametrize("delay", thinned(["first line", 1.0, 0.15, 0.3, 0.6, 2.0], 2))
def test_a_signal_in_the_first_seconds_ends_with_one_line(
    number: signal.Signals, delay: float | str, checkpoint: Path, data: Path, tmp_path: Path
) -> None:
    process = start(tmp_path, "prune", checkpoint, "--data", data, "-o", "out", *SHORT)
    if isinstance(delay, str):
        wait_for(process, "loraprune ")
    else:
        time.sleep(delay)
    process.send_signal(number)
    out, err = process.communicate(timeout=120)
    assert (process.returncode, out) == (128 + number, ""), err
    assert [line for line in err.splitlines() if line.startswith("Stopped")] == err.splitlines()[-1:]
    assert "Traceback" not in err
    assert not (tmp_path / "out").exists()
