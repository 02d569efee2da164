"""Interrupted runs that are gone on with differently, or from damaged checkpoints."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from tests.checkpoints import write_texts
from tests.finished_run import CONFIG, QUICK
from transformers import TrainerCallback

from loraprune import PruneResult, RunOptions, prune

pytestmark = pytest.mark.filterwarnings("ignore:Training ended")

TRAINING = {**QUICK, "max_steps": 8, "save_steps": 2}


def run(
    model: Path, data: Path, output: Path, *, callbacks: Any = (), resume: bool = True, **given: Any
) -> PruneResult:
    changes = given.pop("allow_changes", False)
    options = RunOptions(output=output, latency=False, report=False, resume=resume, allow_changes=changes)
    training = {**TRAINING, **given}
    return prune(str(model), data, CONFIG, training=training, options=options, callbacks=callbacks)


class _Stop(TrainerCallback):
    """Kills a run."""

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 5:
            raise RuntimeError("killed")


@pytest.fixture(scope="module")
def stopped(checkpoint: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the state of a run that was killed after step 5; no test changes it."""
    folder = tmp_path_factory.mktemp("stopped")
    with pytest.raises(RuntimeError, match="killed"):
        run(checkpoint, data, folder / "out", resume=False, callbacks=[_Stop()])
    return folder


@pytest.fixture
def output(stopped: Path, tmp_path: Path) -> Path:
    shutil.copytree(stopped / "out.run", tmp_path / "out.run")
    return tmp_path / "out"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"learning_rate": 1e-3}, r"learning_rate: 0\.005 -> 0\.001"),
        ({"per_device_train_batch_size": 2}, "per_device_train_batch_size: 4 -> 2"),
        ({"max_length": 16}, r"max_length: 32 -> 16.*data: "),
        ({"max_steps": 10}, "max_steps: 8 -> 10"),
    ],
)
def test_what_differs_is_named_and_refused(
    changes: dict[str, Any], said: str, checkpoint: Path, data: Path, output: Path
) -> None:
    with pytest.raises(ValueError, match=rf"started differently \({said}.*--allow-changes"):
        run(checkpoint, data, output, **changes)
    assert run(checkpoint, data, output, allow_changes=True, **changes).metrics["steps"] == changes.get("max_steps", 8)


def test_so_are_other_data(checkpoint: Path, output: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"started differently \(data: \d+ rows, \w+ -> \d+ rows, \w+\)"):
        run(checkpoint, write_texts(tmp_path / "other.jsonl", 90), output)


class _Rates(TrainerCallback):
    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.seen.append(kwargs["optimizer"].param_groups[0]["lr"])


def test_a_new_learning_rate_is_the_one_that_is_used(checkpoint: Path, data: Path, output: Path) -> None:
    rates = [_Rates(), _Rates()]
    copied = output.with_name("same")
    shutil.copytree(output.with_name("out.run"), copied.with_name("same.run"))
    run(checkpoint, data, copied, callbacks=[rates[0]])
    run(checkpoint, data, output, callbacks=[rates[1]], learning_rate=5e-4, allow_changes=True)
    assert rates[1].seen == pytest.approx([rate / 10 for rate in rates[0].seen])


def test_changes_are_about_a_run_that_is_resumed(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Add --resume"):
        RunOptions(output=tmp_path / "out", allow_changes=True)


@pytest.mark.parametrize(
    "name",
    ["optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json", "loraprune_state.json",
     "loraprune_run.json", "loraprune_state.safetensors", "adapter_model.safetensors"],
)  # fmt: skip
def test_a_damaged_file_is_named_and_the_checkpoint_before_it_is_used(
    name: str, checkpoint: Path, data: Path, output: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = output.with_name("out.run") / "checkpoint-4" / name
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    steps = _Rates()
    run(checkpoint, data, output, callbacks=[steps])
    assert f"checkpoint-4 is not used: {name} is damaged." in caplog.text
    assert len(steps.seen) == 6


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "trainer_state.json"])
def test_so_is_one_that_is_missing(
    name: str, checkpoint: Path, data: Path, output: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (output.with_name("out.run") / "checkpoint-4" / name).unlink()
    run(checkpoint, data, output)
    assert f"checkpoint-4 is not used: {name} is missing." in caplog.text


def test_states_of_a_divergence_that_older_versions_saved_are_passed_over(
    checkpoint: Path, data: Path, output: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = output.with_name("out.run") / "checkpoint-4" / "loraprune_state.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"skipped_steps": [3, 4]}))
    run(checkpoint, data, output)
    assert "checkpoint-4 is not used: it was saved after a step with NaN or Inf." in caplog.text


def test_without_any_that_is_whole_the_run_starts_anew_or_not_at_all(
    checkpoint: Path, data: Path, output: Path
) -> None:
    for folder in output.with_name("out.run").glob("checkpoint-*"):
        (folder / "optimizer.pt").write_bytes(b"")
    with pytest.raises(
        ValueError,
        match=r"The run cannot resume from any saved state .*checkpoint-4: optimizer\.pt is damaged.*--overwrite",
    ):
        run(checkpoint, data, output)
