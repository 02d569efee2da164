"""Command lines as they are read, and recipes with values of every kind that they may hold."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from loraprune.cli.parsing import owners_of, parsed, parser_of
from loraprune.cli.prune import PRUNE_OPTIONS
from loraprune.cli.recipe_files import read_recipe, typed
from loraprune.cli.training_names import training_names
from loraprune.cli.training_options import full_parser, training_fields


def test_the_last_value_of_an_option_counts() -> None:
    assert parsed(parser_of("oneshot"), ["MODEL", "--ratio", "0.3", "--ratio", "0.4"]).ratio == 0.4


def test_underscores_are_dashes() -> None:
    assert parsed(parser_of("oneshot"), ["MODEL", "--keep_layers", "0"]).keep_layers == (0,)


def test_no_command_has_an_option_that_does_not_exist() -> None:
    assert owners_of("--nothing") == ""
    assert owners_of("--keep-zeros") == "--keep-zeros is an option of loraprune recover"


@pytest.mark.parametrize(
    ("name", "value", "read"),
    [
        ("ratio", 0.3, 0.3),
        ("learning_rate", "1e-4", 1e-4),
        ("keep_layers", [0, -1, "10%"], (0, -1, "10%")),
        ("keep_layers", "0-2,-1", (0, 1, 2, -1)),
        ("dimensions", ["heads", "channels"], ("heads", "channels")),
        ("lora_target_modules", "q_proj", ["q_proj"]),
        ("lora_target_modules", ["q_proj", "v_proj"], ["q_proj", "v_proj"]),
        ("report_to", ["tensorboard"], ["tensorboard"]),
        ("lr_scheduler_kwargs", {"min_lr": 1e-5}, {"min_lr": 1e-5}),
        ("target_params", 4.5e9, 4_500_000_000),
        ("target_params", None, None),
        ("warmup_steps", 3, 3.0),
        ("bf16", True, True),
        ("verify", False, False),
        ("optim_target_modules", "mlp", "mlp"),
        ("output", "out", Path("out")),
    ],
    ids=str,
)
def test_a_recipe_holds(name: str, value: Any, read: Any) -> None:
    parser = full_parser("loraprune prune", {"ours": PRUNE_OPTIONS.values()})
    assert typed(name, value, parser, PRUNE_OPTIONS, training_fields()) == read


def test_a_scalar_may_be_repeated_by_an_alias(tmp_path: Path) -> None:
    file = tmp_path / "r.yaml"
    file.write_text("lora_r: &r 8\nlora_alpha: *r\n")
    assert read_recipe(file, "loraprune prune") == {"lora_r": 8, "lora_alpha": 8}


def test_the_output_of_a_command_is_a_recipe() -> None:
    out, into = os.pipe()
    os.write(into, b"sparsity: 2:4\n")
    os.close(into)
    assert read_recipe(Path(f"/dev/fd/{out}"), "loraprune oneshot") == {"sparsity": "2:4"}
    os.close(out)


def test_training_options_are_known_without_an_import_of_trl() -> None:
    assert training_fields().keys() <= training_names()
    script = "import sys; from loraprune.cli.main import main; assert main(['prune', '--rato', '3']) == 2; "
    script += "assert 'trl' not in sys.modules and 'transformers' not in sys.modules"
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert "did you mean --ratio?" in ended.stderr
