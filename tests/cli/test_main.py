from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import pytest
from tests.cli.conftest import Command

import loraprune
from loraprune.cli.main import COMMANDS

HELP = [["--help"], ["-h"], ["help"], *([command, "--help"] for command in COMMANDS)]

HEAVY = """
import sys
from loraprune.cli.main import main
for line in sys.argv[1:]:
    try:
        code = main(line.split())
    except SystemExit as exit:
        code = exit.code
    heavy = {"torch", "transformers", "trl", "peft", "datasets", "gguf", "onnx", "numpy"} & set(sys.modules)
    if heavy or code != 0:
        sys.exit(f"{line}: code {code}, imported {heavy}")
"""


def process(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False)


def children_seconds() -> float:
    """Processor time of all processes that were started here; unlike the clock, it does not tell of other work."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@pytest.mark.parametrize("arguments", HELP, ids=" ".join)
def test_help_is_there_within_a_second(arguments: list[str]) -> None:
    for last in (False, False, True):
        start = children_seconds()
        finished = process("-m", "loraprune", *arguments)
        seconds = children_seconds() - start
        assert finished.returncode == 0, finished.stderr
        assert "usage: loraprune" in finished.stdout
        if 0.0 < seconds < 1.0:
            break
        assert not last, f"{seconds} s in the third try, too"


def test_nothing_heavy_is_imported_for_help() -> None:
    finished = process("-c", HEAVY, "--help", "--version", *(f"{name} --help" for name in COMMANDS))
    assert finished.returncode == 0, finished.stderr


def test_help_lists_every_command(run: Command) -> None:
    finished = run("--help")
    assert finished.code == 0
    for name, text in COMMANDS.items():
        assert f"  {name}" in finished.out
        assert text in finished.out


@pytest.mark.parametrize("flag", ["--version", "-V"])
def test_the_version_is_printed(run: Command, flag: str) -> None:
    assert run(flag).out == f"loraprune {loraprune.__version__}\n"


def test_no_command_shows_the_usage_and_fails(run: Command) -> None:
    finished = run()
    assert (finished.code, finished.out) == (2, "")
    assert finished.err.startswith("usage: loraprune COMMAND")


def test_an_unknown_command_is_refused_with_those_there_are(run: Command) -> None:
    finished = run("prun")
    assert (finished.code, finished.out) == (2, "")
    assert "There is no command 'prun'; choose one of" in finished.err
    assert all(name in finished.err for name in COMMANDS)
    assert "Did you mean 'prune'?" in finished.err
    assert "Did you mean" not in run("foobarbaz").err


def test_the_versions_and_the_device_are_named_for_a_bug_report(run: Command) -> None:
    finished = run("env")
    assert finished.code == 0
    named = [line.split()[0] for line in finished.out.splitlines()]
    assert {"python", "loraprune", "torch", "transformers", "peft", "trl", "accelerate", "device"} <= set(named)
    assert f"loraprune     {loraprune.__version__}" in finished.out


def test_a_command_without_arguments_shows_how_it_is_used(run: Command) -> None:
    assert (run("prune").code, run("inspect").code) == (2, 2)


def test_the_command_is_found_wherever_it_is_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(loraprune.__file__).parents[1]))
    finished = subprocess.run(
        [sys.executable, "-m", "loraprune", "--version"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert finished.stdout == f"loraprune {loraprune.__version__}\n"
    assert list(tmp_path.iterdir()) == []
