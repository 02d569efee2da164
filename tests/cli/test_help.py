"""Help pages: what is used most stands first, rare options wait behind ``--help-all``, and lines fit a terminal."""

from __future__ import annotations

import argparse
import re

import pytest
from tests.cli.conftest import Command

from loraprune.cli.main import COMMANDS
from loraprune.cli.parsing import Parser, parser_of

PAGES = list(COMMANDS)


def options_of(parser: Parser) -> list[argparse.Action]:
    return [action for action in parser._actions if action.option_strings and action.help != argparse.SUPPRESS]


@pytest.fixture(autouse=True)
def _narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")


@pytest.mark.parametrize("command", [name for name in PAGES if name != "env"])
def test_the_options_that_are_used_most_come_first(command: str, run: Command) -> None:
    page = run(command, "--help").out
    heading = re.findall(r"^([\w -]+):$", page.partition("arguments:\n")[2] or page, re.MULTILINE)[0]
    assert heading == {"verify": "model", "push": "hub"}.get(command, "most used")
    most = next(group for group in parser_of(command)._action_groups if group.title == heading)
    assert len(most._group_actions) <= 14


@pytest.mark.parametrize("command", PAGES)
def test_every_option_has_help_of_one_phrase(command: str) -> None:
    for action in options_of(parser_of(command)):
        text = str(action.help)
        assert len(text.partition(" (default")[0]) >= 8, action.option_strings
        assert text[0].islower() or text.split()[0] in ("GGUF:", "GPUs", "CPU", "LoRA", "YAML", "JSON"), text
        assert not text.endswith("."), text


@pytest.mark.parametrize("command", PAGES)
def test_rare_options_are_shown_by_help_all_alone(command: str, run: Command) -> None:
    parser, short, full = parser_of(command), run(command, "--help").out, run(command, "--help-all").out
    rare = [group for group in parser._action_groups if group.title in parser.rare]
    assert {group.title for group in rare} == parser.rare
    for group in rare:
        for action in group._group_actions:
            assert f"  {action.option_strings[0]}" not in short
            assert f"  {action.option_strings[0]}" in full
    assert ("--help-all shows" in short) == bool(rare)
    assert "--help-all" not in full


@pytest.mark.parametrize("page", [["--help"], *([command, "--help-all"] for command in PAGES)], ids=" ".join)
def test_lines_fit_a_terminal_of_80_columns(page: list[str], run: Command) -> None:
    lines = run(*page).out.splitlines()
    long = [line for line in lines if len(line) > 80]
    assert long == []


def test_a_switch_shows_its_negation_where_it_is_on(run: Command) -> None:
    page = run("prune", "--help").out
    assert "--report, --no-report " in page
    assert "--no-resume" not in page


def test_the_main_options_of_trl_are_known_to_trl() -> None:
    from loraprune.cli.shared_options import LENGTH, OPTIMIZATION
    from loraprune.cli.training_names import training_names

    assert {option.name for option in (*LENGTH, *OPTIMIZATION)} <= training_names()


def test_defaults_of_training_options_are_those_of_a_run() -> None:
    from loraprune.cli.shared_options import LENGTH, OPTIMIZATION
    from loraprune.tasks.arguments import _DEFAULTS, DEFAULT_MAX_LENGTH

    shown = {option.name: option.help for option in (*LENGTH, *OPTIMIZATION)}
    defaults = {**_DEFAULTS, "max_length": DEFAULT_MAX_LENGTH}
    for name in shown.keys() & defaults.keys() - {"learning_rate"}:
        assert f"(default: {defaults[name]}" in shown[name]
