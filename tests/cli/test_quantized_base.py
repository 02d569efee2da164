from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.quantized_models import need
from transformers import AutoModelForCausalLM

from loraprune.cli.main import main
from loraprune.cli.prune import settle_quantization
from loraprune.layers.quantized import is_quantized_model


@pytest.mark.parametrize(
    ("given", "recipe", "expected"),
    [
        ({"load_in_8bit": True}, {}, "bnb-8bit"),
        ({"load_in_4bit": True}, {}, "bnb-4bit"),
        ({"quantization": "torchao-int8"}, {}, "torchao-int8"),
        ({"load_in_4bit": True, "quantization": "bnb-4bit"}, {}, "bnb-4bit"),
        ({}, {"load_in_8bit": True}, "bnb-8bit"),
        ({"load_in_4bit": True}, {"load_in_8bit": True}, "bnb-4bit"),
        ({"load_in_4bit": False}, {"load_in_4bit": True}, None),
        ({}, {}, None),
    ],
)
def test_the_switches_stand_for_quantizations_and_the_command_line_wins(
    given: dict[str, Any], recipe: dict[str, Any], expected: str | None
) -> None:
    values = {**recipe, **given}
    settle_quantization(values, given)
    assert values == ({} if expected is None else {"quantization": expected})


def test_two_quantizations_are_refused() -> None:
    given = {"load_in_4bit": True, "load_in_8bit": True}
    with pytest.raises(ValueError, match="Only one quantization is possible, but bnb-4bit and bnb-8bit were given"):
        settle_quantization(dict(given), given)


@pytest.mark.parametrize(
    ("options", "name", "kept"),
    [(["--load-in-4bit"], "bnb-4bit", False), (["--load-in-8bit", "--keep-quantized"], "bnb-8bit", True)],
)
def test_a_run_from_the_command_line(
    tmp_path: Path, checkpoint: Path, data: Path, options: list[str], name: str, kept: bool
) -> None:
    need(name)
    output = tmp_path / "out"
    command = ["prune", str(checkpoint), "--data", str(data), "-o", str(output), "--max-steps", "4", "--max-length",
               "32", "--eval-sequences", "4", "--no-latency", "--quiet", *options]  # fmt: skip
    assert main(command) == 0
    record = json.loads((output / "pruning.json").read_text())
    assert record["settings"]["base"] == {"quantization": name, "keep_quantized": kept}
    assert is_quantized_model(AutoModelForCausalLM.from_pretrained(output)) is kept


def test_an_unknown_quantization_is_one_plain_line(
    tmp_path: Path, checkpoint: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["prune", str(checkpoint), "--data", str(data), "-o", str(tmp_path / "out"), "--quantization", "int3"]
    assert main(command) == 2
    assert "quantization is 'int3'; choose one of bnb-8bit" in " ".join(capsys.readouterr().err.split())
