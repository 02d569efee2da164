"""No command destroys what its output names: a table over all of them."""

from __future__ import annotations

import json
import os
import shutil
import socket
import stat
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.cli.conftest import QUICK, Command, Finished
from tests.run_folders import write_run

from loraprune import PruneResult

TRAINING = ("--max-steps=4", "--max-length=32")
ONESHOT = ("--criterion", "magnitude", "--sparsity", "0.5")

FOLDERS: dict[str, tuple[str, ...]] = {
    "prune": ("prune", "MODEL", "--data", "DATA", *QUICK, "-o", "OUT"),
    "oneshot": ("oneshot", "MODEL", *ONESHOT, "-o", "OUT"),
    "recover": ("recover", "MODEL", "--data", "DATA", *TRAINING, "-o", "OUT"),
    "demo": ("demo", "-o", "OUT"),
    "export, 2:4": ("export", "MODEL", "--format", "compressed-tensors", "-o", "OUT"),
}
"""Commands that write a folder."""

FILES: dict[str, tuple[str, ...]] = {
    "plan": ("plan", "MODEL", "-o", "OUT"),
    "compare, json": ("compare", "RUN", "--json", "OUT"),
    "compare, page": ("compare", "RUN", "-o", "OUT.html"),
    "compare, picture": ("compare", "RUN", "--picture", "OUT.svg"),
    "compare-criteria": ("compare-criteria", "MODEL", "--data", "DATA", "--max-length=32", "--output", "OUT"),
    "eval": ("eval", "MODEL", "--ppl", "NOTES", "-o", "OUT"),
    "bench": ("bench", "MODEL", "-o", "OUT"),
    "report": ("report", "FINISHED", "-o", "OUT.html"),
    "report, data": ("report", "FINISHED", "-o", "OUT.html"),
    "inspect": ("inspect", "MODEL", "--draft", "OUT"),
    "export, gguf": ("export", "MODEL", "--format", "gguf", "-o", "OUT"),
    "export, onnx": ("export", "MODEL", "--format", "onnx", "-o", "OUT"),
}
"""Commands that write a file."""

CALLS = FOLDERS | FILES


def fifo(path: Path) -> None:
    os.mkfifo(path)


def device(path: Path) -> None:
    try:
        os.mknod(path, 0o600 | stat.S_IFCHR, os.makedev(1, 3))
    except PermissionError:
        pytest.skip("only root makes devices")


def link_to_device(path: Path) -> None:
    device(path.with_name("node"))
    path.symlink_to("node")


Call = Callable[..., Finished]


@pytest.fixture
def call(
    run: Command,
    checkpoint: Path,
    data: Path,
    finished: PruneResult,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Call:
    """Calls a command of the table in a folder of its own; ``out`` is its output."""
    monkeypatch.chdir(tmp_path)
    notes = tmp_path / "notes.txt"
    notes.write_text("Some words. " * 100)
    names: dict[str, object] = {"MODEL": checkpoint, "DATA": data, "NOTES": notes, "RUN": write_run(tmp_path / "run")}
    names["FINISHED"] = finished.output

    def done(name: str, out: Path, *further: str) -> Finished:
        named: dict[str, object] = {**names, "OUT": out, "OUT.html": out, "OUT.svg": out}
        return run(*(str(named.get(argument, argument)) for argument in CALLS[name]), *further)

    return done


def place(name: str, folder: Path) -> Path:
    """An output of a command, with the suffix that it wants."""
    return folder / CALLS[name][-1].lower()


def standing(name: str, out: Path) -> Path:
    """What is in the way: the output, or, of the data of a report, what lies beside it."""
    return out.with_suffix(".json") if name == "report, data" else out


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def refused(finished: Finished) -> str:
    """The one line of a refusal."""
    assert (finished.code, finished.out) == (2, ""), finished
    assert finished.err.startswith("error: ")
    assert finished.err.count("\n") == 1
    return finished.err


@pytest.mark.parametrize("make", [fifo, device, link_to_device])
@pytest.mark.parametrize("name", CALLS)
def test_a_device_or_fifo_is_refused_before_any_work_and_stays(
    call: Call, tmp_path: Path, name: str, make: Callable[[Path], None]
) -> None:
    out = place(name, tmp_path)
    special = standing(name, out)
    make(special)
    before = special.stat(), names_in(tmp_path)
    kind = "FIFO" if make is fifo else "device"
    for further in ((), ("--overwrite",)) if name in ("prune", "oneshot", "recover", "export, gguf") else ((),):
        assert f"is a {kind}, which is never replaced" in refused(call(name, out, *further))
    assert os.path.samestat(before[0], special.stat())
    assert names_in(tmp_path) == before[1]


@pytest.mark.parametrize("name", CALLS)
def test_a_place_that_cannot_be_written_is_found_out_before_any_work(call: Call, tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("mine")
    line = refused(call(name, place(name, tmp_path / "file")))
    if name == "plan":
        assert "does not exist" in line
    else:
        assert "cannot be written" in line
        assert "file is not a folder that you can write to" in line
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_somebody_else_is_not_replaced(call: Call, tmp_path: Path, name: str) -> None:
    out = place(name, tmp_path)
    thesis = standing(name, out)
    thesis.write_text("three years")
    further = ("--overwrite",) if name.startswith("export") else ()
    assert str(thesis) in refused(call(name, out, *further))
    assert thesis.read_text() == "three years"


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("plan", "plan.json"),
        ("compare, json", "comparison.json"),
        ("compare, page", "comparison.html"),
        ("compare, picture", "comparison.svg"),
        ("compare, picture", "comparison.png"),
        ("compare, picture", "comparison.pdf"),
        ("report", "report.html"),
        ("eval", "evaluation.json"),
    ],
)
def test_an_older_file_of_its_own_is_replaced(call: Call, tmp_path: Path, name: str, file: str) -> None:
    for _ in range(2):
        done = call(name, tmp_path / file)
        assert done.code == 0, done.err
    (tmp_path / file).write_text("")  # nothing is lost with an empty one
    if name != "eval":
        assert call(name, tmp_path / file).code == 0


@pytest.mark.parametrize("name", ["prune", "oneshot", "recover", "export, 2:4"])
def test_a_folder_of_somebody_else_is_not_replaced(call: Call, tmp_path: Path, name: str) -> None:
    out = place(name, tmp_path)
    out.mkdir()
    (out / "config.json").write_text("{}")
    (out / "thesis.tex").write_text("three years")
    assert "thesis.tex" in refused(call(name, out, "--overwrite"))
    assert names_in(out) == ["config.json", "thesis.tex"]


@pytest.mark.parametrize("option", ["--tokenizer", "--eval-data", "--data", "--config", "--architecture"])
@pytest.mark.parametrize("name", ["prune", "oneshot", "recover"])
def test_an_input_is_never_replaced(call: Call, checkpoint: Path, tmp_path: Path, name: str, option: str) -> None:
    out = shutil.copytree(checkpoint, tmp_path / "out")
    inside = out
    if option in ("--config", "--architecture"):
        inside = out / "vocab.txt"
        inside.write_text("quiet: true" if option == "--config" else "model_type: mine")
    before = names_in(out)
    assert f"{inside} lies in the output folder" in refused(call(name, out, "--overwrite", option, str(inside)))
    assert names_in(out) == before


def test_a_tokenizer_in_its_own_folder_is_not_replaced(call: Call, checkpoint: Path, tmp_path: Path) -> None:
    tokenizer = tmp_path / "tokenizer"
    tokenizer.mkdir()
    for path in checkpoint.glob("*token*"):
        shutil.copy(path, tokenizer)
    before = names_in(tokenizer)
    assert "lies in the output folder" in refused(call("prune", tokenizer, "--overwrite", "--tokenizer", "tokenizer"))
    assert names_in(tokenizer) == before


@pytest.mark.parametrize("form", ["gguf", "onnx"])
@pytest.mark.parametrize("file", ["model.safetensors", "config.json", "tokenizer.json"])
def test_an_export_never_replaces_its_own_input(
    run: Command, checkpoint: Path, tmp_path: Path, form: str, file: str
) -> None:
    model = shutil.copytree(checkpoint, tmp_path / "model")
    before = (model / file).read_bytes()
    (tmp_path / "link").symlink_to(model / file)
    for out in (model / file, tmp_path / "link"):
        refused(run("export", model, "--format", form, "-o", out, "--overwrite"))
    assert (model / file).read_bytes() == before


@pytest.mark.parametrize("file", ["config.json", "model.safetensors", "tokenizer.json"])
@pytest.mark.parametrize("name", ["plan", "compare-criteria"])
def test_a_file_never_replaces_one_of_the_model(
    run: Command, checkpoint: Path, data: Path, tmp_path: Path, name: str, file: str
) -> None:
    model = shutil.copytree(checkpoint, tmp_path / "model")
    before = (model / file).read_bytes()
    named = {"MODEL": str(model), "DATA": str(data), "OUT": str(model / file)}
    refused(run(*(named.get(argument, argument) for argument in CALLS[name])))
    assert (model / file).read_bytes() == before


class TestAFullDisk:
    @pytest.fixture(autouse=True)
    def _full(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Files can be begun, and hold nothing."""

        def full(descriptor: int) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("loraprune.record.atomic.os.fsync", full)

    def test_shows_the_figures_of_a_benchmark_and_ends_with_1(self, call: Call, tmp_path: Path) -> None:
        out = tmp_path / "out"
        options = ("--repeats", "1", "--tokens", "8", "--new-tokens", "2")
        finished = call("bench", out, *options)
        assert finished.code == 1, finished.err
        assert "ms" in finished.out
        assert f"error: {out} cannot be written: No space left on device. Free some space" in finished.err
        assert not out.exists()

    def test_shows_the_figures_of_an_evaluation_and_ends_with_1(self, call: Call, tmp_path: Path) -> None:
        finished = call("eval", tmp_path / "out", "--max-length", "32")
        assert finished.code == 1
        assert "notes.txt@32" in finished.out
        assert "cannot be kept, only printed" in finished.err
        assert f"error: {tmp_path / 'out'} does not hold all results." in finished.err

    def test_shows_an_estimate_and_ends_with_1(self, call: Call, tmp_path: Path) -> None:
        finished = call("plan", tmp_path / "out")
        assert finished.code == 1
        assert "peak of a step" in finished.out
        assert "No space left on device" in finished.err


def overflowing(checkpoint: Path, folder: Path, value: float = 1e5) -> Path:
    """A copy of a model with one weight that is too large for float16."""
    shutil.copytree(checkpoint, folder)
    tensors = load_file(folder / "model.safetensors")
    tensors["model.embed_tokens.weight"][3, 3] = value
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


class TestWeightsThatAreNotFinite:
    @pytest.mark.parametrize("name", ["prune", "oneshot", "recover"])
    def test_are_not_saved_and_the_old_result_stays(
        self, run: Command, checkpoint: Path, data: Path, tmp_path: Path, name: str
    ) -> None:
        out = shutil.copytree(checkpoint, tmp_path / "out")
        before = (out / "model.safetensors").read_bytes()
        model = overflowing(checkpoint, tmp_path / "model")
        named = {"MODEL": str(model), "DATA": str(data), "OUT": str(out)}
        command = [named.get(argument, argument) for argument in CALLS[name]]
        finished = run(*command, "--overwrite", "--dtype", "float16", "-q")
        assert (finished.code, finished.out) == (1, "")
        assert finished.err.count("\n") == 1
        assert "error: model.embed_tokens.weight holds 0 NaN and 1 Inf (float16)" in finished.err
        assert "with --dtype bfloat16" in finished.err
        assert (out / "model.safetensors").read_bytes() == before
        # What training has come to is kept, so that the way out costs no second training.
        resume = () if name == "oneshot" else ("--resume",)
        assert names_in(tmp_path) == ["model", "out", *(["out.run"] if resume else [])]
        assert run(*command, "--overwrite", "--dtype", "bfloat16", "-q", *resume).code == 0
        assert json.loads((out / "config.json").read_text())["dtype"] == "bfloat16"
        assert json.loads((out / "pruning.json").read_text())["recipe"]["dtype"] == "bfloat16"

    def test_are_not_exported(self, run: Command, checkpoint: Path, tmp_path: Path) -> None:
        model = overflowing(checkpoint, tmp_path / "model", float("nan"))
        finished = run("export", model, "--format", "onnx", "-o", tmp_path / "file")
        assert (finished.code, finished.out) == (1, "")
        assert "model.embed_tokens.weight holds 1 NaN and 0 Inf" in finished.err
        assert names_in(tmp_path) == ["model"]


@pytest.mark.parametrize("kept", [False, True])
def test_a_full_disk_while_a_state_is_saved_is_one_error_and_leaves_nothing_half(
    run: Command, checkpoint: Path, data: Path, tmp_path: Path, kept: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    save = torch.save

    def full(content: object, path: Any, **options: Any) -> None:
        if "checkpoint-4" in str(path) or not kept:
            Path(path).write_bytes(b"half")
            raise RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos 64 vs 0")
        save(content, path, **options)

    monkeypatch.setattr(torch, "save", full)
    finished = run("prune", checkpoint, "--data", data, *QUICK, "-o", out, "--save-steps", "2", "-q")
    assert (finished.code, finished.out) == (1, "")
    assert finished.err == (
        f"error: The state of the run in {out}.run cannot be written: the disk is full or not writable. Free "
        "some space and resume with --resume, or start again if no state was saved before.\n"
    )
    assert names_in(tmp_path) == (["out.run"] if kept else [])
    if kept:
        assert [path.name for path in (tmp_path / "out.run").glob("checkpoint-*")] == ["checkpoint-2"]
        monkeypatch.setattr(torch, "save", save)
        again = run("prune", checkpoint, "--data", data, *QUICK, "-o", out, "--save-steps", "2", "-q", "--resume")
        assert again.code == 0, again.err


def test_an_output_that_appears_during_the_run_is_kept_and_so_is_the_result(
    run: Command, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    recipe = import_module("loraprune.recipes.oneshot")  # the package has a function of that name
    finish = recipe.finish

    def meanwhile(*arguments: Any, **named: Any) -> Any:
        out.mkdir()
        (out / "thesis.tex").write_text("three years")
        return finish(*arguments, **named)

    monkeypatch.setattr(recipe, "finish", meanwhile)
    finished = run("oneshot", checkpoint, *ONESHOT, "-o", out, "-q")
    assert finished.code == 1
    assert f"error: {out} was created or changed during the run" in finished.err
    assert f"The result is in {out}.new." in finished.err
    assert names_in(out) == ["thesis.tex"]
    assert names_in(tmp_path) == ["out", "out.new"]
    assert (tmp_path / "out.new" / "model.safetensors").is_file()


RUNS = """
import sys
from loraprune.cli.main import main
import importlib
oneshot = importlib.import_module("loraprune.recipes.oneshot")
if sys.argv[1] == "wait":
    finish = oneshot.finish
    def waiting(*arguments, **named):
        print("here", flush=True)
        sys.stdin.readline()
        return finish(*arguments, **named)
    oneshot.finish = waiting
sys.exit(main(sys.argv[2:]))
"""


def test_of_two_runs_into_one_output_the_second_is_refused_and_a_killed_one_is_not_in_the_way(
    run: Command, checkpoint: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    command = ["oneshot", str(checkpoint), *ONESHOT, "-o", str(out), "-q"]
    with subprocess.Popen(
        [sys.executable, "-c", RUNS, "wait", *command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "here\n"
        for further in ((), ("--overwrite",)):
            finished = run(*command, *further)
            assert (finished.code, finished.out) == (2, "")
            assert f"{out} is being written to by another run (host {socket.gethostname()}, process {first.pid})" in (
                finished.err
            )
        first.kill()
    assert run(*command).code == 0
    assert names_in(tmp_path) == ["out"]
