"""The files of examples/: scripts and notebooks run, and options and configurations are known ones."""

from __future__ import annotations

import json
import re
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.checkpoints import tiny_checkpoint, write_texts
from tests.thinned import thinned

from loraprune.cli.prune import PRUNE_OPTIONS

EXAMPLES = Path(__file__).parents[1] / "examples"
SCRIPTS = sorted(EXAMPLES.glob("*.sh"))
CONFIGS = sorted(EXAMPLES.glob("*.yaml"))
PYTHON = sorted(EXAMPLES.glob("*.py"))
NOTEBOOKS = sorted(EXAMPLES.glob("notebooks/*.ipynb"))
STUDY = "--held-out data.jsonl --methods loraprune random --ratios 0.5 --seeds 1 --steps 2 -o out"
REDUCED = {
    "02_prune_while_tuning.py": ["--steps", "8", "-o", "out"],
    "03_callback_in_sfttrainer.py": ["--steps", "8", "-o", "out"],
    "04_own_criterion.py": ["--held-out", "data.jsonl"],
    "05_study.py": STUDY.split(),
}
"""Further arguments of a script that make its run small."""
SHOWN = {
    "01_oneshot.py": "parameters ",
    "02_prune_while_tuning.py": "out holds a LlamaForCausalLM",
    "03_callback_in_sfttrainer.py": "parameters are left in out",
    "04_own_criterion.py": "| own ",
    "05_study.py": "| loraprune |",
}
PARAMETERS = """
MODEL, DATA, HELD_OUT, TOKENS, STEPS, RATIOS = "model", "data.jsonl", "data.jsonl", 32, 4, (0.5,)
from pathlib import Path
"""
"""What stands in place of the first cell of a notebook."""


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


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a tiny model and text, which is the current one."""
    tiny_checkpoint(tmp_path / "model", max_position_embeddings=128)
    write_texts(tmp_path / "data.jsonl", 80)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run_script(script: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["--model", "model", "--data", "data.jsonl", *REDUCED.get(script.name, ())]
    monkeypatch.setattr(sys, "argv", [str(script), *arguments])
    runpy.run_path(str(script), run_name="__main__")


@pytest.mark.parametrize("script", thinned(PYTHON), ids=lambda path: path.name)
@pytest.mark.usefixtures("workplace")
def test_a_script_runs(script: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    run_script(script, monkeypatch)
    assert SHOWN[script.name] in capsys.readouterr().out


@pytest.mark.full
def test_the_study_makes_no_run_twice(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = workplace / "out" / "rows.jsonl"
    run_script(EXAMPLES / "05_study.py", monkeypatch)
    first = rows.read_text()
    assert len(first.splitlines()) == 2
    rows.write_text(first.splitlines(keepends=True)[0])  # as if it had been stopped after one run
    capsys.readouterr()
    run_script(EXAMPLES / "05_study.py", monkeypatch)
    assert rows.read_text() == first
    assert capsys.readouterr().out.count("perplexity ") == 1
    assert {path.name for path in rows.parent.iterdir()} == {"rows.jsonl", "table.md", "picture.svg"}


def code_cells(notebook: Any) -> list[Any]:
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_a_notebook_keeps_the_outputs_of_one_run_from_top_to_bottom(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    cells = code_cells(json.loads(text))
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert outputs
    assert not [output for output in outputs if output["output_type"] == "error" or output.get("name") == "stderr"]
    assert not re.search(r"/(home|root|tmp|work|Users)/", text)


@pytest.mark.full
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
@pytest.mark.usefixtures("workplace")
def test_a_notebook_runs_and_shows_in_every_cell_what_it_keeps(path: Path) -> None:
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    kept = nbformat.read(path, as_version=4)
    notebook = nbformat.read(path, as_version=4)
    first = code_cells(notebook)[0]
    assert first["metadata"]["tags"] == ["parameters"]
    first["source"] = PARAMETERS
    nbclient.NotebookClient(notebook, timeout=300).execute()  # an error in a cell is raised
    for cell, known in zip(code_cells(notebook), code_cells(kept), strict=True):
        assert kinds(cell) == kinds(known), cell["source"]


def kinds(cell: Any) -> list[tuple[str, ...]]:
    """What a cell shows, without what it says on standard error: text, pictures, tables."""
    outputs = [output for output in cell["outputs"] if output.get("name") != "stderr"]
    return [(output["output_type"], *sorted(output.get("data", ()))) for output in outputs]


def test_the_table_names_every_file() -> None:
    named = set(re.findall(r"\]\(([\w./]+)\)", (EXAMPLES / "README.md").read_text()))
    named = {name for name in named if not name.startswith("..")}
    assert named == {str(path.relative_to(EXAMPLES)) for path in (*SCRIPTS, *CONFIGS, *PYTHON, *NOTEBOOKS)}
