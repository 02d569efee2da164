from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.cli.conftest import Command
from transformers import AutoModelForCausalLM

QUICK = ["--max-steps=6", "--max-length=32", "--per-device-train-batch-size=4", "--learning-rate=1e-2"]


def test_single_weights_become_zero(run: Command, checkpoint: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    options = ["--criterion", "pst", "--ratio", "0.5", "--pst-rank", "2", "--pst-learning-rate", "1e-3"]
    finished = run("prune", checkpoint, "--data", data, *options, "-o", out, *QUICK)
    assert finished.code == 0, finished.err
    assert "Weights that are not zero" in finished.out
    assert "50.0% zero" in finished.err
    assert "pruned, " not in finished.err
    settings = json.loads((out / "pruning.json").read_text())["settings"]["pruning"]["pst"]
    assert (settings["rank"], settings["learning_rate"]) == (2, 1e-3)
    weight = AutoModelForCausalLM.from_pretrained(out).model.layers[0].mlp.up_proj.weight
    assert int((weight == 0).sum()) == weight.numel() // 2


@pytest.mark.parametrize("option", ["--repair=refit", "--cuts=3", "--latency"])
def test_options_that_can_do_nothing_are_refused(
    run: Command, checkpoint: Path, data: Path, tmp_path: Path, option: str
) -> None:
    finished = run("prune", checkpoint, "--data", data, "--criterion", "pst", option, "-o", tmp_path / "out", *QUICK)
    assert finished.code == 2
    assert f"{option.partition('=')[0]} does not apply to the criterion 'pst'" in finished.err


def test_options_that_speak_of_groups_are_refused(run: Command, checkpoint: Path, data: Path, tmp_path: Path) -> None:
    finished = run("prune", checkpoint, "--data", data, "--criterion", "pst", "--allocation", "uniform",
                   "-o", tmp_path / "out", *QUICK)  # fmt: skip
    assert finished.code == 2
    assert "allocation is 'uniform', an option for groups" in finished.err
