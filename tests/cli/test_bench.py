"""``loraprune bench`` from the command line."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from tests.checkpoints import tiny_checkpoint
from tests.cli.conftest import Command

QUICK = ("--repeats=2", "--warmup=1", "--new-tokens=2")


@pytest.fixture
def narrow(tmp_path: Path) -> Path:
    return tiny_checkpoint(tmp_path / "narrow", intermediate_size=16)


def test_two_models_are_compared_in_tables_that_fit_a_terminal(
    run: Command, checkpoint: Path, narrow: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    file = tmp_path / "results" / "bench.json"
    done = run("bench", checkpoint, narrow, *QUICK, "--decode-batch", "1", "2", "-o", file)
    assert done.code == 0, done.err
    for title in ("Models", "Prefill, 1 × 64 tokens", "Decoding a token, batch 1, after 62", "batch 2, after 62"):
        assert title in done.out
    first, second = (
        re.findall(rf"^ ?{name} +.* (\S+)$", done.out.replace(" \n", "\n"), re.M) for name in ("tiny-llama", "narrow")
    )
    assert first[1:] == ["1.00×"] * 3
    assert all(re.fullmatch(r"\d+(\.\d+)?×", ratio) for ratio in second[1:])
    tables = done.out.partition("Repeats:")[0].splitlines()[:-2]
    assert max(map(len, tables)) <= 80
    assert re.search(r"Repeats: 2 after 1 of warm-up, in turns", done.out)
    assert "float32" in done.out
    stored = json.loads(file.read_text())
    assert stored["command"].startswith("loraprune bench ")
    assert [len(figure["seconds"]) for figure in stored["figures"]] == [2] * 6
    assert "prefill, 1 × 64 tokens (6 calls)" in done.err


def test_a_second_run_replaces_its_file_and_no_other(run: Command, checkpoint: Path, tmp_path: Path) -> None:
    file = tmp_path / "bench.json"
    for _ in range(2):
        assert run("bench", checkpoint, *QUICK, "--no-decoding", "-q", "-o", file).code == 0
    other = tmp_path / "notes.txt"
    other.write_text("mine")
    refused = run("bench", checkpoint, *QUICK, "-o", other)
    assert refused.code == 2
    assert "exists and holds no benchmark" in refused.err
    assert other.read_text() == "mine"


def test_the_training_profile_shows_time_and_memory_of_each_criterion(
    run: Command, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    options = ("--profile", "training", "--criteria", "fisher,magnitude", "--tokens=16", "--repeats=2", "--warmup=1")
    done = run("bench", checkpoint, *options, "--gradient-checkpointing", "--bf16")
    assert done.code == 0, done.err
    assert "Training step, 1 × 16 tokens, bfloat16 autocast, gradient checkpointing" in done.out
    for name in ("plain LoRA", "fisher", "magnitude", "masks, 50%", "slices, 50%"):
        assert re.search(rf"^ ?{name} .*\d ms .* [kM]B .*×", done.out, re.M), name
    assert re.search(r"magnitude .*\+\d\S* ms", done.out)
    assert max(map(len, done.out.partition("Repeats:")[0].splitlines()[:-2])) <= 80


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--repeats", "2"], "The model is missing"),
        (["MODEL", "--decode-bath", "2"], "did you mean --decode-batch?"),
        (["MODEL", "--no-decoding", "--decode-batch", "2"], "contradict each other"),
        (["MODEL", "--tokens", "many"], "is not a whole number"),
        (["MODEL", "MODEL", "--profile", "training"], "measures one model, and you passed 2"),
        (["DATA"], "not a checkpoint"),
        (["MODEL", "-o", "FOLDER"], "is a folder"),
        (["MODEL", "-o", "DATA/bench.json"], "cannot be written"),
    ],
)
def test_a_mistake_is_one_line_and_code_2(
    run: Command, checkpoint: Path, data: Path, tmp_path: Path, arguments: list[str], complaint: str
) -> None:
    places = {
        "MODEL": str(checkpoint),
        "DATA": str(data),
        "FOLDER": str(tmp_path),
        "DATA/bench.json": f"{data}/bench.json",
    }
    done = run("bench", *(places.get(argument, argument) for argument in arguments))
    assert done.code == 2
    assert complaint in done.err
    assert done.err.count("\n") == 1
    assert not done.out
