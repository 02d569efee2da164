"""What SECURITY.md promises and no other test shows."""

from __future__ import annotations

import ast
import os
import pickle
import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from loraprune import PruningConfig, RunOptions, prune
from loraprune.architectures import read_spec
from loraprune.checkpoint.exports.appearing import appearing_files
from loraprune.cli.recipe_files import read_recipe
from loraprune.record.appearing import appearing_folder

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "src" / "loraprune").rglob("*.py"))


def calls(tree: ast.AST) -> list[ast.Call]:
    return [node for node in ast.walk(tree) if isinstance(node, ast.Call)]


def test_no_module_reads_pickles_or_runs_text() -> None:
    for path in SOURCES:
        check_calls(path)


def check_calls(path: Path) -> None:
    """A module imports nothing that reads pickles, and calls nothing that runs text or makes objects of it."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    imported = {
        alias.name.partition(".")[0] for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names
    }
    imported |= {str(node.module).partition(".")[0] for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert imported.isdisjoint({"pickle", "dill", "cloudpickle", "marshal", "shelve", "joblib"}), path
    named = {ast.unparse(call.func) for call in calls(tree)}
    assert named.isdisjoint({"torch.load", "eval", "yaml.unsafe_load", "yaml.full_load", "np.load", "numpy.load"}), path
    # The class for ragged widths is made from the package's own text, and names of classes that transformers has.
    assert "exec" not in named or path.name == "pruned_class.py", path
    bases = {
        node.name: [ast.unparse(base) for base in node.bases]
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
    }
    for call in calls(tree):
        if ast.unparse(call.func) == "yaml.load":
            assert bases[ast.unparse(call.args[1])] == ["yaml.SafeLoader"], path


class _Payload:
    """A pickle that makes a file when it is read."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("tag", ["!!python/object/apply:os.mkdir", "!!python/object/new:os.mkdir"])
def test_yaml_makes_no_objects(tag: str, tmp_path: Path) -> None:
    path, mark = tmp_path / "nasty.yaml", tmp_path / "mark"
    path.write_text(f"ratio: {tag} ['{mark}']\n", encoding="utf-8")
    for read in (partial(read_recipe, command="loraprune prune"), read_spec):
        with pytest.raises(ValueError, match=re.escape(str(path))):
            read(path)
    assert not mark.exists()


class _Stop(TrainerCallback):
    """Ends a run."""

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 3:
            raise RuntimeError("killed")


def test_a_state_with_a_pickle_in_it_is_not_executed(checkpoint: Path, data: Path, tmp_path: Path) -> None:
    mark, training = tmp_path / "mark", {"max_steps": 4, "save_steps": 2, "max_length": 32}
    config, options = PruningConfig(calibration_sequences=16), {"output": tmp_path / "out", "latency": False}

    def run(*, resume: bool) -> None:
        prune(
            checkpoint,
            data,
            config,
            training=training,
            options=RunOptions(resume=resume, **options),
            callbacks=() if resume else [_Stop()],
        )

    with pytest.raises(RuntimeError, match="killed"):
        run(resume=False)
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        state = tmp_path / "out.run" / "checkpoint-2" / name
        whole = state.read_bytes()
        torch.save(_Payload(mark), state)
        with pytest.raises(Exception, match=r"(?i)weights.only|unsafe|unsupported|damaged"):
            run(resume=True)
        state.write_bytes(whole)
    assert not mark.exists()
    pickle.loads(pickle.dumps(_Payload(mark)))  # which it would have been
    assert mark.exists()


def test_folders_on_the_way_are_new_and_their_names_cannot_be_foretold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = set()
    for _ in range(2):
        with appearing_folder(tmp_path / "out", overwrite=True) as folder:
            (folder / "pruning.json").touch()
            seen.add(folder.name)
        with appearing_files(tmp_path / "file") as file:
            file.touch()
            seen.add(file.parent.name)
    assert len(seen) == 4
    assert all(re.fullmatch(r"\.(out|file)\.[0-9a-f]{16}\.partial", name) for name in seen)
    monkeypatch.setattr("secrets.token_hex", lambda count: "0" * 2 * count)
    for name, appearing in (("other", appearing_folder), ("further", appearing_files)):
        (tmp_path / "elsewhere").mkdir(exist_ok=True)
        trap = tmp_path / f".{name}.{'0' * 16}.partial"
        monkeypatch.setattr("loraprune.record.claims.clear_leftovers", lambda output: None)
        trap.symlink_to("elsewhere")  # as somebody would lay it who knew the name
        with pytest.raises(FileExistsError), appearing(tmp_path / name):
            pass
        assert list((tmp_path / "elsewhere").iterdir()) == []
