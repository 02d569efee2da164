from __future__ import annotations

from pathlib import Path

import pytest
from tests.cli.conftest import QUICK, Command
from tests.thinned import thinned

DRY = {
    "prune": ["--ratio=0.5", *QUICK],
    "oneshot": ["--ratio=0.5", "--calibration-sequences=8", "--max-length=32"],
    "recover": [option for option in QUICK if "calibration" not in option and "latency" not in option],
}
FURTHER = {
    "pst": ["prune", "--criterion=pst", *QUICK],
    "compresso": ["prune", "--criterion=compresso", *QUICK],
    "before training": ["prune", "--prune-start=0", "--cuts=1", *QUICK],
    "widths": ["prune", "--widths=heads=1,channels=24", *QUICK],
    "sparse": ["oneshot", "--sparsity=2:4", "--max-length=32"],
    "no data": ["oneshot", "--sparsity=0.5", "--criterion=magnitude"],
    "blocks": ["oneshot", "--dimensions=blocks", "--ratio=0.5", "--max-length=32"],
}


def listed(folder: Path) -> list[tuple[str, int]]:
    """All files and folders, with the time of their last change."""
    return sorted((str(path), path.stat().st_mtime_ns) for path in (folder, *folder.rglob("*")))


def dry(run: Command, command: list[str], checkpoint: Path, data: Path, folder: Path) -> list[str]:
    before, out = listed(folder), folder / "new" / "out"
    found = run(*command[:1], checkpoint, *command[1:], "-o", out, "--dry-run", "--data", data)
    assert found.code == 0, found.err
    assert listed(folder) == before
    lines = found.out.splitlines()
    assert lines[0] == f"{command[0]} {checkpoint}" or len(str(checkpoint)) > 60
    assert all(len(line) <= 80 or str(checkpoint) in line or str(out) in line for line in lines)
    return lines


@pytest.mark.parametrize("command", DRY)
def test_a_dry_run_says_what_the_run_would_do_and_writes_nothing(
    command: str, run: Command, checkpoint: Path, data: Path, tmp_path: Path
) -> None:
    lines = dry(run, [command, *DRY[command]], checkpoint, data, tmp_path)
    labels = {line[2:13].strip() for line in lines[1:]} - {""}
    assert {"model", "data", "memory", "time", "output"} <= labels
    assert ("pruning" in labels) == (command != "recover")
    assert ("training" in labels) == (command != "oneshot")


@pytest.mark.parametrize("name", thinned(list(FURTHER), 1))
def test_every_kind_of_run_has_an_outlook(
    name: str, run: Command, checkpoint: Path, data: Path, tmp_path: Path
) -> None:
    dry(run, FURTHER[name], checkpoint, data, tmp_path)


def test_a_dry_run_refuses_what_the_run_would_refuse(
    run: Command, checkpoint: Path, data: Path, tmp_path: Path
) -> None:
    found = run("prune", checkpoint, "--data", data, "-o", tmp_path / "out", "--dry-run", "--optim=adafactor")
    assert found.code == 2
    assert "--optim adafactor" in found.err


@pytest.mark.full
def test_a_run_shows_the_same_block_first_and_a_quiet_one_does_not(
    run: Command, checkpoint: Path, data: Path, tmp_path: Path
) -> None:
    for quiet in (False, True):
        found = run("prune", checkpoint, "--data", data, "-o", tmp_path / f"{quiet}", *QUICK, *(["-q"] * quiet))
        assert found.code == 0, found.err
        assert ("4 steps of 4 rows" in found.err) != quiet
        assert "4 steps of 4 rows" not in found.out


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--ratio=0.5"], " if split evenly; other splits are tried)"),
        (["--ratio=0.5", "--allocation=uniform"], "(KV heads 4 to 2, channels "),
        (["--widths=heads=2;heads=1"], "the best of these widths: KV heads 4 to 2, or KV heads 4 to 1;"),
    ],
)
def test_a_run_without_training_names_the_planned_widths(
    options: list[str], said: str, run: Command, checkpoint: Path, data: Path, tmp_path: Path
) -> None:
    lines = dry(run, ["oneshot", *options, "--max-length=32"], checkpoint, data, tmp_path)
    assert said in " ".join(line.strip() for line in lines)
