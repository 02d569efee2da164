"""``loraprune compare --eval``: runs that were measured differently are measured alike."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.cli.conftest import Command

CUT = ["--criterion", "magnitude", "--repair", "none", "--no-latency", "--eval-sequences", "0", "--quiet"]


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.full
def test_what_is_missing_is_measured_and_kept(run: Command, checkpoint: Path) -> None:
    Path("a.txt").write_text("a text of many words, " * 40)
    for ratio in ("0.3", "0.5"):
        assert run("oneshot", checkpoint, *CUT, "--ratio", ratio, "-o", ratio).code == 0
    without = run("compare", "0.3", "0.5")
    assert without.code == 2
    assert run("eval", "0.3", "--ppl", "a.txt", "--max-length", "32", "-o", "0.3/evaluation.json", "-q").code == 0
    left = run("compare", "0.3", "0.5")
    assert "0.5 has none. Measure all of them with --eval" in left.err
    done = run("compare", "0.3", "0.5", "--eval", "a.txt", "--max-length", "48", "-q", "--json", "all.json")
    assert done.code == 0, done.err
    (group,) = json.loads(Path("all.json").read_text())["groups"]
    assert group["quality"]["label"] == "a.txt@48 perplexity"
    assert [model["name"] for model in group["models"]] == [checkpoint.name, "0.3", "0.5"]
    kept = {name: json.loads(Path(name, "evaluation.json").read_text())["entries"] for name in ("0.3", "0.5")}
    assert [len(entries) for entries in kept.values()] == [3, 1]  # the dense model is measured once
    again = run("compare", "0.3", "0.5", "--eval", "a.txt", "--max-length", "48", "-q")
    assert again.out == done.out.replace("JSON: all.json\n", "")
    assert {name: json.loads(Path(name, "evaluation.json").read_text())["entries"] for name in kept} == kept


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--eval", "nothing"], "There is no text 'nothing'"),
        (["--limit", "3"], "--max-length and --limit need --eval"),
        (["--eval", "--max-length", "1"], "max_length is 1"),
    ],
)
def test_what_cannot_be_measured_is_refused(run: Command, checkpoint: Path, options: list[str], message: str) -> None:
    done = run("compare", checkpoint, *options)
    assert done.code == 2
    assert message in done.err
    assert done.err.count("error:") == 1
