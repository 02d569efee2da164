"""Every option that takes a number, as it is declared, refuses what is none before a model is loaded."""

from __future__ import annotations

import argparse
import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn, get_args, get_type_hints

import pytest
from tests.cli.conftest import Command
from tests.cli.refusals.options import CRITERIA, ONESHOT, PRUNE, RECOVER
from tests.thinned import thinned
from transformers import PreTrainedModel
from trl import SFTConfig

from loraprune.cli.main import COMMANDS
from loraprune.cli.options import numbers, parameter_count
from loraprune.cli.parsing import parser_of
from loraprune.cli.prune import PRUNE_OPTIONS
from loraprune.measure.benchmark.config import OF_TRAINING
from loraprune.pruning.oneshot_config import SparseConfig
from loraprune.tasks.training_rules import REMEDIES

NUMBERS = (int, float, numbers, parameter_count)
NOT_NEGATIVE_ALONE = {"max_steps", "local_rank", "eval_delay", "eval_steps"}
"""Options for which -1 is a value: it means that there is none, or nothing reads them."""


class _Loaded(BaseException):
    """A model is about to be loaded."""


def _stop(*_: object, **__: object) -> NoReturn:
    raise _Loaded


def line(command: str, name: str) -> str:
    """A command line in which an option means something."""
    if command == "oneshot":
        amount = "" if name in ("ratio", "sparsity", "target_params") else "--ratio 0.5"
        zeros = {*SparseConfig.flat_names()} - {"damping", "keep_layers", "seed", "max_length", "offload"}
        return f"{ONESHOT} {'--sparsity 0.5' if name in zeros - {'calibration_sequences', 'sparsity'} else amount}"
    return {
        "prune": PRUNE,
        "recover": RECOVER,
        "compare-criteria": CRITERIA,
        "eval": "eval model --prompts hi --sample" + (" --ppl data.jsonl" if name == "stride" else ""),
        "bench": "bench model" + (" --profile training" if name in OF_TRAINING else ""),
    }.get(command, command if command == "demo" else f"{command} model")


def own_options() -> Iterator[tuple[str, str]]:
    """Commands with the names of their options that take numbers."""
    for command in COMMANDS:
        for action in parser_of(command)._actions:
            if action.type in NUMBERS and action.help != argparse.SUPPRESS:
                yield command, action.dest


def options_of_trl() -> Iterator[tuple[str, str]]:
    """The further options of ``prune`` that take numbers."""
    for name, kind in get_type_hints(SFTConfig).items():
        if {*(get_args(kind) or (kind,))} - {type(None)} in ({int}, {float}) and name not in {
            *PRUNE_OPTIONS,
            *REMEDIES,
        }:
            yield "prune", name


@pytest.fixture
def here(checkpoint: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a model and data, in which nothing is loaded."""
    (tmp_path / "model").symlink_to(checkpoint)
    (tmp_path / "data.jsonl").symlink_to(data)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(PreTrainedModel, "from_pretrained", _stop)
    return tmp_path


@pytest.mark.parametrize(("command", "name"), [*own_options(), *thinned(options_of_trl(), 10)])
def test_what_is_no_number_is_refused(command: str, name: str, run: Command, here: Path) -> None:
    before = sorted(here.iterdir())
    flags = {"batch_size": "--batch-size"}
    for value in ("nan", "inf", "text", "-1", "-99999999999999999999"):
        flag = flags.get(name, "--" + name.replace("_", "-"))
        arguments = [*line(command, name).split(), f"{flag}={value}"]
        try:
            finished = run(*arguments)
        except _Loaded:
            assert value == "-1", arguments
            assert name in NOT_NEGATIVE_ALONE, arguments
            continue
        assert finished.code == 2, (arguments, finished)
        answer = finished.err.strip().splitlines()[-1]
        assert answer.startswith("error: "), (arguments, finished.err)
        assert words(name) <= words(answer), (arguments, answer)
    assert sorted(here.iterdir()) == before


def words(text: str) -> set[str]:
    """The words of a text or of a name."""
    return {*re.findall(r"[a-z0-9]+", text.lower())}


def test_every_configuration_declares_its_ranges() -> None:
    from loraprune import BenchConfig, EstimateConfig, EvaluationConfig
    from loraprune.options.field import kind_of, rule_of

    configs: tuple[type[Any], ...] = (BenchConfig, EstimateConfig, EvaluationConfig)
    checked = {"temperature", "top_p", "max_new_tokens", "target_params"}  # by what uses them
    for config in configs:
        for field in dataclasses.fields(config):
            if kind_of(field) in ("int", "float") and field.name not in checked:
                assert rule_of(field).within is not None, field.name
