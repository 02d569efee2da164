"""The recipes that the package brings: each one runs as its first line says."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml
from tests.cli.conftest import QUICK, Command
from tests.thinned import thinned

from loraprune.cli.options import indices
from loraprune.cli.recipe_files import published
from loraprune.structure.kinds import protected_layers

SMALL = ["--gradient-accumulation-steps=1"]


def command_of(path: Path) -> str:
    """The command that a recipe is for, as its first lines say."""
    found = re.search(r"`loraprune (\w+) MODEL", path.read_text(encoding="utf-8"))
    assert found is not None, f"{path.name} does not say its command"
    return found[1]


def test_the_method_of_the_paper_is_among_them() -> None:
    assert {"loraprune-paper", "loraprune-official", "llm-pruner", "pst", "compresso", *FIRST} <= set(published())


FIRST = ("loraprune-paper", "llm-pruner-recover", "flap", "wanda-structured")


@pytest.mark.parametrize("name", thinned(sorted(published(), key=lambda name: name not in FIRST), len(FIRST)))
@pytest.mark.slow
def test_a_published_recipe_runs_by_its_name(
    name: str, run: Command, checkpoint: Path, data: Path, tmp_path: Path
) -> None:
    path = published()[name]
    command = command_of(path)
    quick = ["--calibration-sequences=8", "--max-length=32", "--no-latency"]
    if command != "oneshot":
        quick = [*(option for option in QUICK if command == "prune" or "calibration" not in option), *SMALL]
        quick = [option for option in quick if command == "prune" or option != "--no-latency"]
    if "keep_layers" in yaml.safe_load(path.read_text(encoding="utf-8")):
        quick += ["--keep-layers=0", "--ratio=0.3"]  # the model has two layers, and those of LLaMA-7B are 32
    if "pruning_prompt" in yaml.safe_load(path.read_text(encoding="utf-8")):
        quick += ["--pruning-prompt=Hi."]  # ours is longer than the rows are here
    out = tmp_path / "out"
    finished = run(command, checkpoint, "--data", data, "-o", out, "--config", name, *quick)
    assert finished.code == 0, finished.err
    record = json.loads((out / "pruning.json").read_text())
    said = yaml.safe_load(path.read_text(encoding="utf-8"))
    settings = json.dumps(record["settings"])
    for key in {"criterion", "method", "lora_form", "taylor_form"} & set(said):
        assert json.dumps(said[key]) in settings


def test_a_recipe_that_is_not_there_lists_those_of_the_package(run: Command, checkpoint: Path, tmp_path: Path) -> None:
    finished = run("prune", checkpoint, "--config", "loraprune-papr", "-o", tmp_path / "out")
    assert finished.code == 2
    assert "loraprune-papr does not exist. Names of published recipes:" in finished.err
    assert "loraprune-paper" in finished.err


@pytest.mark.parametrize(
    ("name", "kept"), [("llm-pruner", {0, 1, 2, 3, 30, 31}), ("loraprune-official", {0, 1, 2, 31})]
)
def test_layers_that_are_kept_are_those_of_llama_7b(name: str, kept: set[int]) -> None:
    value = yaml.safe_load(published()[name].read_text(encoding="utf-8"))["keep_layers"]
    assert protected_layers(indices(value) if isinstance(value, str) else tuple(value), 32) == kept
