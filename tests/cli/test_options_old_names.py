"""Options under their old names, on the command line and in recipes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.cli.conftest import QUICK, Command

from loraprune.cli.oneshot import ONESHOT_OPTIONS
from loraprune.cli.options import OLD_OPTIONS, old_names, with_new_names
from loraprune.cli.prune import PRUNE_OPTIONS
from loraprune.cli.recover import RECOVER_OPTIONS


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"refit": False}, {"repair": "none"}),
        ({"refit": True}, {"repair": "refit"}),
        ({"refit_damping": 0.5, "cuts": 2}, {"damping": 0.5, "cuts": 2}),
        ({"head_rounding": "any"}, {"head_counts": "any"}),
    ],
)
def test_old_names_mean_the_new_ones_and_say_so_once(
    given: dict[str, Any], expected: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    assert with_new_names(given, OLD_OPTIONS) == expected
    assert sum("is now called" in message for message in caplog.messages) == 1


def test_each_command_knows_the_old_names_of_its_own_options() -> None:
    assert old_names(PRUNE_OPTIONS.values()) == {"refit", "refit_damping", "head_rounding"}
    assert old_names(ONESHOT_OPTIONS.values()) == {"method", "head_rounding"}
    assert old_names(RECOVER_OPTIONS.values()) == set()
    for options in (PRUNE_OPTIONS, ONESHOT_OPTIONS):
        assert all(OLD_OPTIONS[option.old].name == name for name, option in options.items() if option.old)


def test_an_old_name_of_another_command_is_unknown(run: Command, checkpoint: Path, data: Path, tmp_path: Path) -> None:
    for words in (("prune", "--method", "fisher"), ("oneshot", "--no-refit", "--ratio", "0.5")):
        finished = run(words[0], checkpoint, "--data", data, "-o", tmp_path / "out", *words[1:])
        assert finished.code == 2
        assert "unrecognized arguments" in finished.err


def test_a_command_line_with_old_names_runs_and_help_shows_new_ones(
    run: Command, checkpoint: Path, data: Path, tmp_path: Path
) -> None:
    words = ["--refit", "--refit-damping", "0.1", "--head-rounding", "any", "--ratio", "0.5"]
    finished = run("prune", checkpoint, "--data", data, "-o", tmp_path / "out", *QUICK, *words)
    assert finished.code == 0, finished.err
    assert "--refit is now called --repair; the next version removes the old name." in finished.err
    recipe = json.loads((tmp_path / "out" / "pruning.json").read_text())["recipe"]
    assert (recipe["repair"], recipe["damping"], recipe["head_counts"]) == ("refit", 0.1, "any")
    shown = run("prune", "--help").out
    assert "--refit" not in shown
    assert "--repair" in shown


def test_a_recipe_with_old_names_runs(run: Command, checkpoint: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "old.yaml"
    recipe.write_text("method: magnitude\nsparsity: 2:4\n", encoding="utf-8")
    finished = run("oneshot", checkpoint, "--config", recipe, "-o", tmp_path / "out", "-q")
    assert finished.code == 0, finished.err
    assert json.loads((tmp_path / "out" / "pruning.json").read_text())["settings"]["oneshot"]["method"] == "magnitude"


def test_both_names_of_an_option_are_refused(run: Command, checkpoint: Path, data: Path, tmp_path: Path) -> None:
    words = ["--no-refit", "--repair", "refit"]
    finished = run("prune", checkpoint, "--data", data, "-o", tmp_path / "out", *words)
    assert finished.code == 2
    assert "--refit is the old name of --repair; give one of them." in finished.err


def test_a_plan_knows_the_old_switch(run: Command) -> None:
    old, new = (run("plan", "llama-7b", *words, "--json") for words in (["--no-refit"], ["--repair", "none"]))
    assert (old.code, new.code) == (0, 0)
    assert json.loads(old.out) == json.loads(new.out)
