"""Commands that are killed at random moments lose nothing and leave nothing: ``scripts/kill_runs.py`` tries it."""

from __future__ import annotations

import random
import re
import subprocess
import sys
from pathlib import Path

import pytest
from scripts import kill_runs

ROOT = Path(__file__).parents[2]
ALL = tuple(kill_runs.COMMANDS)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems cannot exchange two folders in one step")
@pytest.mark.parametrize(
    ("kind", "rounds", "commands"),
    [
        ("KILL", 1, ("prune",)),
        pytest.param(
            "KILL", 1, ("oneshot", "oneshot-by-block", "export", "recover"), marks=[pytest.mark.slow, pytest.mark.full]
        ),
        pytest.param("KILL", 20, ALL, marks=[pytest.mark.slow, pytest.mark.full]),
        pytest.param("TERM", 8, ALL, marks=[pytest.mark.slow, pytest.mark.full]),
        pytest.param("INT", 4, ALL, marks=[pytest.mark.slow, pytest.mark.full]),
    ],
)
@pytest.mark.timeout(1800)
def test_after_any_kill_the_next_run_ends_as_if_there_had_been_none(
    kind: str, rounds: int, commands: tuple[str, ...]
) -> None:
    if "export" in commands:
        pytest.importorskip("gguf", reason="gguf is not installed")
    done = subprocess.run(
        [sys.executable, "scripts/kill_runs.py", f"--rounds={rounds}", f"--kind={kind}", "--command", *commands],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    assert len(re.findall(rf"{rounds} rounds, .*\b{rounds} equal results", done.stdout)) == len(commands)
    assert re.search(r"\d+ kills\b", done.stdout)


# The script finds the harm that it looks for.


def rounds_with(harm: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> kill_runs.Rounds:
    """Rounds of a command that writes a word, and does harm when it is stopped or started again."""

    def run(arguments: list[str], place: Path, *, delay: float | None = None, kind: str = "KILL") -> int:
        output = place / arguments[arguments.index("-o") + 1]
        if delay is None:
            changed = harm == "another result" and place.name.startswith("round")
            output.write_text("changed" if changed else arguments[0])
            return 0
        if harm == "half a result":
            output.write_text(arguments[0][:1])
        elif harm == "no result":
            output.unlink(missing_ok=True)
        elif harm == "a leftover":
            (place / ".out.0123456789abcdef.partial").touch()
        return -9

    monkeypatch.setattr(kill_runs, "run", run)
    return kill_runs.Rounds(folder, kill_runs.Command(["new"], ["older"]), "KILL", random.Random(0))


@pytest.mark.parametrize(
    ("harm", "number", "said"),
    [
        ("half a result", 0, "neither the older result nor the new one"),
        ("half a result", 1, "neither the older result nor the new one"),
        ("no result", 1, "neither the older result nor the new one"),
        ("a leftover", 0, "left behind: .out.0123456789abcdef.partial"),
        ("another result", 0, "another result than without kills: out"),
    ],
)
def test_harm_is_found(harm: str, number: int, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rounds = rounds_with(harm, tmp_path, monkeypatch)
    with pytest.raises(kill_runs.WrongError, match=re.escape(said)):
        rounds.round(number, 2)
    assert rounds.tally["equal results"] == 0


@pytest.mark.parametrize("number", [0, 1])
def test_a_round_without_harm_is_counted(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rounds = rounds_with("none", tmp_path, monkeypatch)
    rounds.round(number, 2)
    assert rounds.tally == {"kills": 2, "found no state": 2, "equal results": 1}


def test_times_alone_make_no_difference() -> None:
    record = {"metrics": {"seconds": 1.0, "history": [{"seconds": 1.0, "loss": 2.0}]}, "created": "today"}
    assert kill_runs.without_times(record) == {"metrics": {"history": [{"loss": 2.0}]}}
