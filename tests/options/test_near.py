from __future__ import annotations

import pytest

from loraprune.cli.main import COMMANDS
from loraprune.cli.parsing import flags_of, parser_of
from loraprune.cli.training_names import training_names
from loraprune.importance.configs import CRITERIA
from loraprune.options.near import did_you_mean, near_names


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("--rato", "--ratio"),
        ("--ouput", "--output"),
        ("--keep_layer", "--keep-layers"),
    ],
)
def test_a_typo_in_an_option_has_one_guess(typed: str, meant: str) -> None:
    assert near_names(typed, flags_of(parser_of("prune"))) == [meant]


@pytest.mark.parametrize("typed", ["--foobarbaz", "--quux", "--hello-world", "--x", "--gpu-count"])
def test_what_is_like_no_option_has_no_guess(typed: str) -> None:
    known = [*flags_of(parser_of("prune")), *(f"--{name.replace('_', '-')}" for name in training_names())]
    assert near_names(typed, known) == []


def test_commands_and_criteria_are_guessed_by_the_same_rule() -> None:
    assert near_names("prunee", COMMANDS) == ["prune"]
    assert near_names("Fischer", CRITERIA) == ["fisher"]
    assert near_names("help-me", COMMANDS) == []


def test_case_and_underscores_do_not_count() -> None:
    assert near_names("LORA_FORM", ["lora-form"]) == ["lora-form"]


def test_a_guess_is_a_sentence_or_nothing() -> None:
    assert did_you_mean("slise", ("slice", "mask")) == " Did you mean 'slice'?"
    assert did_you_mean("other", ("slice", "mask")) == ""
