"""The files of examples/: scripts that a shell reads, with known options, and configurations for accelerate."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
import yaml

from loraprune.cli.prune import PRUNE_OPTIONS

EXAMPLES = Path(__file__).parents[1] / "examples"
SCRIPTS = sorted(EXAMPLES.glob("*.sh"))
CONFIGS = sorted(EXAMPLES.glob("*.yaml"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_a_script_is_one_and_its_options_are_known(script: Path) -> None:
    assert subprocess.run(["bash", "-n", str(script)], capture_output=True).returncode == 0
    assert script.stat().st_mode & 0o111
    (command,) = re.findall(r"-m loraprune prune (.*)", script.read_text())
    options = re.findall(r"--([a-z-]+)", command)
    assert options
    assert {option.replace("-", "_") for option in options} <= set(PRUNE_OPTIONS)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.name)
def test_a_configuration_says_how_weights_are_held(config: Path) -> None:
    values = yaml.safe_load(config.read_text())
    if "fsdp" in config.name:
        assert values["distributed_type"] == "FSDP"
        assert values["fsdp_config"]["fsdp_version"] == 2
    elif "zero" in config.name:
        assert values["distributed_type"] == "DEEPSPEED"
        assert values["deepspeed_config"] == {"zero_stage": 3}
    else:
        assert values["distributed_type"] == "MULTI_GPU"
        assert "fsdp_config" not in values


def test_the_table_names_every_file() -> None:
    named = set(re.findall(r"\]\(([\w.]+)\)", (EXAMPLES / "README.md").read_text()))
    assert named == {path.name for path in (*SCRIPTS, *CONFIGS)}
