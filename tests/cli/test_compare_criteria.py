from __future__ import annotations

import json
import re
from pathlib import Path

from tests.cli.conftest import Command

QUICK = [
    "--steps=2",
    "--max-length=32",
    "--per-device-train-batch-size=4",
    "--criteria=lora,fisher",
    "--ratios=0.25,0.5",
]


def test_the_table_shows_pairs_by_kind_and_ratio_and_the_file_says_the_same(
    run: Command, checkpoint: Path, data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "agreement.json"
    finished = run("compare-criteria", checkpoint, "--data", data, *QUICK, "--output", out, "-q")
    assert finished.code == 0, finished.err
    assert re.search(r"agreement of +0\.25 +0\.5", finished.out)
    saved = json.loads(out.read_text())["agreement"]
    for kind in ("heads", "channels"):
        shares = [f"{row['shared']:.0%} ({row['by_chance']:.0%})" for row in saved if row["kind"] == kind]
        assert len(shares) == 2
        assert re.search(rf"{kind} *\n +lora, fisher +{re.escape(shares[0])} +{re.escape(shares[1])}", finished.out)
    assert "drawn at random" in finished.out


def test_no_output_is_needed_and_none_is_written(run: Command, checkpoint: Path, data: Path, tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    assert run("compare-criteria", checkpoint, "--data", data, *QUICK, "-q").code == 0
    assert sorted(tmp_path.rglob("*")) == before


def test_a_criterion_that_there_is_not_is_one_line_and_exit_code_2(run: Command, checkpoint: Path, data: Path) -> None:
    finished = run("compare-criteria", checkpoint, "--data", data, "--criteria", "lora,typo")
    assert finished.code == 2
    assert "There is no criterion 'typo'" in finished.err
    assert "Traceback" not in finished.err


def test_a_folder_as_output_is_refused_before_the_run(
    run: Command, checkpoint: Path, data: Path, tmp_path: Path
) -> None:
    finished = run("compare-criteria", checkpoint, "--data", data, *QUICK, "--output", tmp_path)
    assert finished.code == 2
    assert "is a folder" in finished.err


def test_ratios_that_are_no_numbers_are_refused(run: Command, checkpoint: Path, data: Path) -> None:
    finished = run("compare-criteria", checkpoint, "--data", data, "--ratios", "a,b")
    assert finished.code == 2
    assert "not a list of numbers" in finished.err


def test_help_lists_the_options(run: Command) -> None:
    finished = run("compare-criteria", "--help-all")
    assert finished.code == 0
    for flag in ("--criteria", "--ratios", "--steps", "--allocation", "--average-decay", "--output"):
        assert flag in finished.out
