"""Two processes of one run do what one process does with the same sequences in each step."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from filelock import FileLock
from tests.checkpoints import tiny_checkpoint, write_texts
from tests.processes import measured, scenarios
from transformers import AutoModelForCausalLM

from loraprune import PruningCallback, PruningConfig
from loraprune.pruning.in_parallel import check_parallel
from loraprune.record.claims import claimed

ROOT = Path(__file__).parents[2]
LAUNCH = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
USUAL = ("fisher", "osscar first", "pst", "own trainer, cut first", "oneshot", "oneshot of experts, few tokens")
USUAL += ("shared out: stream", "shared out: lora")
NAMES = [pytest.param(name, marks=() if name in USUAL else pytest.mark.full, id=name) for name in scenarios.SCENARIOS]

QUICK = ("everything", "one of each", "known figures", "criteria")
MEASURED = [pytest.param(name, marks=() if name in QUICK else pytest.mark.full, id=name) for name in measured.MEASURED]

pytestmark = pytest.mark.slow


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'src'}", "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("models") / "deep", num_hidden_layers=3)


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    texts = write_texts(tmp_path_factory.mktemp("data") / "texts.jsonl", count=120)
    measured.prepare(scenarios.measured_folder(str(texts)))
    return texts


@pytest.fixture(scope="module")
def of_two(
    request: pytest.FixtureRequest, deep: Path, texts: Path, tmp_path_factory: pytest.TempPathFactory
) -> list[dict[str, Any]]:
    """What each of two processes found, of all scenarios that are asked for; one launch for all of them."""
    # Workers of pytest-xdist share what one of them finds.
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    kept = shared / "of-two.json"
    with FileLock(f"{kept}.lock"):
        if not kept.exists():
            kept.write_text(json.dumps(_launched(request, deep, texts, tmp_path_factory.mktemp("two"))))
        found: list[dict[str, Any]] = json.loads(kept.read_text())
    return found


def _launched(request: pytest.FixtureRequest, deep: Path, texts: Path, folder: Path) -> list[dict[str, Any]]:
    asked = {
        item.callspec.params["name"]  # type: ignore[attr-defined]
        for item in request.session.items
        if item.path == Path(__file__) and "name" in getattr(getattr(item, "callspec", None), "params", {})
    }
    taken = "magnitude@" + json.dumps({"output": str(folder / "taken")})
    written = "flap@" + json.dumps({"output": str(folder / "written")})
    names = [*sorted(asked - {"magnitude", "flap"}), taken, written, "failing"]
    with claimed(folder / "taken"):
        script = [str(ROOT / "tests/processes/scenarios.py"), str(deep), str(texts), str(folder / "found"), *names]
        done = subprocess.run([*LAUNCH, *script], capture_output=True, text=True, env=environment(), cwd=ROOT)
    assert done.returncode == 0, done.stderr
    found = [json.loads(Path(f"{folder}/found.{rank}").read_text()) for rank in range(2)]
    for rank in found:
        rank["folder"] = str(folder)
    return found


@pytest.mark.parametrize("name", NAMES)
def test_two_processes_do_what_one_does(name: str, of_two: list[dict[str, Any]], deep: Path, texts: Path) -> None:
    if name in ("magnitude", "flap") and "error" in of_two[0][name]:
        pytest.skip("its output was taken, which is another test's")
    alone = scenarios.run(name, str(deep), str(texts), processes=1)
    for place, together in enumerate(rank[name] for rank in of_two):
        assert together["plan"] == alone["plan"]
        assert together["steps"] == alone["steps"] == 8
        assert together["losses"] == pytest.approx(alone["losses"], rel=1e-4)
        assert together.get("perplexity", 0.0) == pytest.approx(alone.get("perplexity", 0.0), rel=1e-4)
        # Where weights are shared out, the first process has the result.
        logits = [] if place > 0 and name.startswith("shared out") else pytest.approx(alone["logits"], abs=1e-3)
        assert together["logits"] == logits


@pytest.mark.parametrize("name", MEASURED)
def test_two_processes_measure_what_one_does(name: str, of_two: list[dict[str, Any]], deep: Path, texts: Path) -> None:
    alone = json.loads(json.dumps(scenarios.run(name, str(deep), str(texts), processes=1)))
    for together in (rank[name] for rank in of_two):
        assert together == alone


def test_what_one_process_fails_at_is_said_by_the_first_one_in_the_same_words(of_two: list[dict[str, Any]]) -> None:
    assert [rank["failing"]["error"] for rank in of_two] == ["ValueError: the disk is on fire"] * 2


def test_an_output_that_another_run_writes_to_is_refused_in_all_processes(of_two: list[dict[str, Any]]) -> None:
    first, second = (rank["magnitude"]["error"] for rank in of_two)
    assert "OutputInUseError" in first
    assert "OtherProcessError" in second
    assert not Path(of_two[0]["folder"], "taken").exists()


def test_the_first_process_alone_writes_one_whole_checkpoint(of_two: list[dict[str, Any]]) -> None:
    folder = Path(of_two[0]["folder"])
    left = sorted(path.name for path in folder.iterdir() if not path.name.startswith("found"))
    assert left == ["written"]
    loaded = AutoModelForCausalLM.from_pretrained(folder / "written")
    with torch.no_grad():
        logits = loaded(torch.arange(3, 19)[None]).logits[0, -1].tolist()
    assert logits == pytest.approx(of_two[0]["flap"]["logits"], abs=1e-4)
    record = json.loads((folder / "written" / "pruning.json").read_text())
    assert record["settings"]["training"]["processes"] == 2


# What ends a run, and how it goes on.


def options(deep: Path, texts: Path, out: Path, *further: str) -> list[str]:
    return [
        *("prune", str(deep), "--data", str(texts), "-o", str(out), "--max-steps", "60", "--max-length", "32"),
        *("--cuts", "2", "--prune-start", "0.1", "--prune-end", "0.3", "--repair", "none", "--save-steps", "5"),
        *("--eval-sequences", "0", "--no-latency", "--no-report", "--no-verify", *further),
    ]


@pytest.mark.full
@pytest.mark.parametrize("end", ["SIGTERM to the launcher", "SIGKILL to a process"])
@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("shared", [(), ("--fsdp", "2", "--repair", "stream")], ids=["whole", "shared out"])
def test_a_run_that_was_ended_goes_on(
    end: str, processes: int, shared: tuple[str, ...], deep: Path, texts: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    command = [*LAUNCH, "-m", "loraprune"]
    together = options(deep, texts, out, "--per-device-train-batch-size", "2", *shared)
    run = subprocess.Popen([*command, *together], env=environment(), stderr=subprocess.PIPE, text=True)
    state = tmp_path / "out.run" / "checkpoint-10" / "loraprune_state.json"
    for _ in range(600):
        if state.exists():
            break
        time.sleep(0.1)
    if end.startswith("SIGTERM"):
        run.terminate()
    else:
        children = subprocess.run(["ps", "-o", "pid=", "--ppid", str(run.pid)], capture_output=True, text=True)
        os.kill(int(children.stdout.split()[-1]), signal.SIGKILL)
    ended = time.monotonic()
    run.communicate(timeout=120)
    assert run.returncode != 0
    assert time.monotonic() - ended < 60
    assert not out.exists()
    alone = options(deep, texts, out, "--per-device-train-batch-size", "4", *shared[2:])
    resumed = together if processes == 2 else alone
    launch = command if processes == 2 else [sys.executable, "-m", "loraprune"]
    done = subprocess.run([*launch, *resumed, "--resume"], env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (out / "pruning.json").exists()
    assert not (tmp_path / "out.run").exists()
    loaded = AutoModelForCausalLM.from_pretrained(out)
    assert "distributed_config" not in json.loads((out / "config.json").read_text())
    with torch.no_grad():
        assert torch.isfinite(loaded(torch.arange(3, 19)[None]).logits).all()
    shutil.rmtree(out)


@pytest.mark.full
def test_another_number_of_sequences_in_a_step_is_refused(deep: Path, texts: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run = subprocess.Popen(
        [*LAUNCH, "-m", "loraprune", *options(deep, texts, out, "--per-device-train-batch-size", "2")],
        env=environment(),
        stderr=subprocess.DEVNULL,
    )
    while not (tmp_path / "out.run" / "checkpoint-5" / "loraprune_state.json").exists():
        time.sleep(0.1)
    run.terminate()
    run.wait(timeout=120)
    alone = [sys.executable, "-m", "loraprune", *options(deep, texts, out, "--per-device-train-batch-size", "2")]
    done = subprocess.run([*alone, "--resume"], env=environment(), capture_output=True, text=True)
    assert done.returncode == 2
    assert "sequences in a step: 4 -> 2" in done.stderr


@pytest.mark.full
def test_the_command_line_evaluates_in_three_processes_and_speaks_once(deep: Path, texts: Path, tmp_path: Path) -> None:
    folder = scenarios.measured_folder(str(texts))
    wanted = ("--ppl", str(folder / "notes.txt"), "--tasks", str(folder / "contexts.jsonl"), "--max-length", "32")
    three = [*LAUNCH[:-1], "3", "-m", "loraprune", "eval", str(deep)]
    one = [sys.executable, "-m", "loraprune", "eval", str(deep)]
    shown, values = [], []
    for command in (one, three):
        out = tmp_path / f"{len(command)}.json"
        asked = [*command, *wanted, "-o", str(out), "-q"]
        done = subprocess.run(asked, capture_output=True, text=True, env=environment())
        assert done.returncode == 0, done.stderr
        shown.append(done.stdout.replace(out.name, ""))
        values.append([entry["values"] for entry in json.loads(out.read_text())["entries"]])
    assert shown[0] == shown[1]
    assert values[0] == values[1]
    wrong = [*three, *wanted, "--device", "cpu:0", "-o", str(tmp_path / "none.json")]
    done = subprocess.run(wrong, capture_output=True, text=True, env=environment())
    assert done.returncode != 0
    assert done.stderr.count("error: --device cpu:0 is one device") == 1
    assert not (tmp_path / "none.json").exists()


# What cannot be shared.


def arguments(**values: Any) -> Any:
    return SimpleNamespace(**{"world_size": 2, "deepspeed": None, "fsdp": [], "torch_compile": False, **values})


@pytest.mark.parametrize(
    ("values", "config", "message"),
    [
        ({"fsdp": ["full_shard"]}, PruningConfig(), "needs plain data parallelism"),
        ({"deepspeed": "config.json"}, PruningConfig(), "needs plain data parallelism"),
        ({"torch_compile": True}, PruningConfig(), "does not support torch_compile"),
        ({}, PruningConfig(criterion="compresso"), "'compresso' learns its gates in one process"),
        ({}, PruningConfig(), r"call callback.lead_\(trainer\) before trainer.train\(\)"),
    ],
    ids=str,
)
def test_what_cannot_be_pruned_together_is_refused(values: Any, config: PruningConfig, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_parallel(arguments(**values), config, None)
    check_parallel(arguments(**values, world_size=1), config, None)


def test_a_callback_that_does_not_know_its_trainer_says_so_before_training() -> None:
    with pytest.raises(ValueError, match="the callback needs the Trainer"):
        PruningCallback().on_train_begin(arguments(), None, None, model=None)  # type: ignore[arg-type]
