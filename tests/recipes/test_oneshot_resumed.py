"""Runs without training that were killed go on at the block where they stopped, and end with the same bits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.thinned import thinned

from loraprune import OneshotConfig, OneshotResult, RunOptions, oneshot, prune
from loraprune.pruning import oneshot as engine
from loraprune.pruning.errors import InterruptedRunError
from loraprune.pruning.resume import STATE_FILE
from loraprune.record.codec import encode
from loraprune.record.saved_steps import SavedSteps

SHORT: dict[str, Any] = {"calibration_sequences": 16, "max_length": 32}
CONFIGS: dict[str, dict[str, Any]] = {
    "measured": {"ratio": 0.5},
    "sparsegpt": {"sparsity": 0.5},
    "two cuts": {"ratio": 0.5, "cuts": 2, "allocation": "uniform"},
    "readers": {"ratio": 0.5, "repair": "stream+readers", "allocation": "balanced"},
    "bias": {"ratio": 0.4, "criterion": "flap", "repair": "bias", "allocation": "global"},
    "fisher": {"ratio": 0.5, "criterion": "fisher", "repair": "refit", "allocation": "balanced", "cuts": 2},
    "wanda": {"sparsity": "2:4", "criterion": "wanda"},
    "blocks": {"ratio": 0.5, "dimensions": ("blocks",)},
}


class Killed(Exception):  # noqa: N818 (stands for the death of a process)
    pass


class Steps:
    """Notes the steps that are kept, and kills the run after some of them."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.kept: list[str] = []
        self.last: int | None = None
        self.error: type[BaseException] = Killed
        keep = SavedSteps.keep

        def kept(saved: SavedSteps, name: str, *args: Any) -> None:
            keep(saved, name, *args)
            if saved.keeps:
                self.kept.append(name)
                if self.last is not None and len(self.kept) >= self.last:
                    raise self.error

        patch.setattr(SavedSteps, "keep", kept)


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> Steps:
    return Steps(monkeypatch)


def run(checkpoint: Path, data: Path, output: Path, values: dict[str, Any], **options: Any) -> OneshotResult:
    given = RunOptions(output=output, eval_sequences=4, latency=False, verify=False, **options)
    return oneshot(checkpoint, data, OneshotConfig(**SHORT, **values), options=given)


def without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_times(inner) for key, inner in value.items() if key not in ("seconds", "phases")}
    return [without_times(inner) for inner in value] if isinstance(value, list) else value


def found(result: OneshotResult) -> dict[str, Any]:
    """What must not depend on a kill, beside the weights."""
    return {
        "metrics": without_times(encode(result.run_record.metrics)),
        "plan": result.plan.to_json(),
        "importance": encode(result.report.importance),
    }


@pytest.mark.parametrize("share", [pytest.param(0.6, id="late"), pytest.param(0.0, id="early", marks=pytest.mark.full)])
@pytest.mark.parametrize("name", thinned(list(CONFIGS), 1))
def test_a_killed_run_goes_on_where_it_stopped_and_ends_with_the_same_bits(
    name: str, share: float, checkpoint: Path, data: Path, tmp_path: Path, steps: Steps
) -> None:
    whole = run(checkpoint, data, tmp_path / "whole", CONFIGS[name])
    all_steps, steps.kept = steps.kept, []
    steps.last = max(1, round(share * len(all_steps)))
    with pytest.raises(Killed):
        run(checkpoint, data, tmp_path / "parts", CONFIGS[name])
    assert steps.kept == all_steps[: steps.last]
    steps.last = None
    again = run(checkpoint, data, tmp_path / "parts", CONFIGS[name], resume=True)
    assert steps.kept == all_steps  # no step was made twice
    assert found(again) == found(whole)
    one, other = (load_file(tmp_path / folder / "model.safetensors") for folder in ("whole", "parts"))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["parts", "whole"]


@pytest.mark.full
def test_scores_and_trials_that_were_finished_are_not_computed_again(
    checkpoint: Path, data: Path, tmp_path: Path, steps: Steps, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = {"ratio": 0.5, "criterion": "fisher", "repair": "refit", "allocation": "balanced"}
    steps.last = 1
    with pytest.raises(Killed):
        run(checkpoint, data, tmp_path / "out", values)
    steps.last = None

    def scored(*args: Any, **named: Any) -> None:
        raise AssertionError

    monkeypatch.setattr(engine, "score_groups", scored)
    assert run(checkpoint, data, tmp_path / "out", values, resume=True).plan.ratio


def test_a_run_that_holds_a_state_is_continued_or_started_again_and_nothing_else(
    checkpoint: Path, data: Path, tmp_path: Path, steps: Steps
) -> None:
    values = CONFIGS["sparsegpt"]
    steps.last, steps.error = 1, KeyboardInterrupt
    with pytest.raises(InterruptedRunError, match="the same command with --resume continues from there"):
        run(checkpoint, data, tmp_path / "out", values)
    steps.last = None
    assert not (tmp_path / "out").exists()
    state = sorted(path.name for path in (tmp_path / "out.run").iterdir())
    assert state == ["oneshot_run.json", "oneshot_zeros-0.safetensors"]
    with pytest.raises(ValueError, match=r"holds an interrupted run. Continue it with --resume"):
        run(checkpoint, data, tmp_path / "out", values)
    with pytest.raises(ValueError, match="holds an interrupted run"):
        prune(checkpoint, data, options=RunOptions(output=tmp_path / "out"))
    with pytest.raises(ValueError, match=r"started differently \(sparsity: 0.5 -> 0.6\)"):
        run(checkpoint, data, tmp_path / "out", {"sparsity": 0.6}, resume=True)
    assert sorted(path.name for path in (tmp_path / "out.run").iterdir()) == state
    steps.kept = []
    run(checkpoint, data, tmp_path / "out", values, overwrite=True)
    assert steps.kept == ["zeros-0", "zeros-1"]
    assert not (tmp_path / "out.run").exists()


def test_an_interrupted_run_with_training_is_not_removed(checkpoint: Path, data: Path, tmp_path: Path) -> None:
    state = tmp_path / "out.run" / "checkpoint-1"
    state.mkdir(parents=True)
    (state / STATE_FILE).write_text("{}")
    with pytest.raises(ValueError, match="holds an interrupted run with training"):
        run(checkpoint, data, tmp_path / "out", CONFIGS["sparsegpt"])
    assert [path.name for path in state.iterdir()] == [STATE_FILE]


def test_nothing_to_resume_is_said(checkpoint: Path, data: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="There is nothing to resume"):
        run(checkpoint, data, tmp_path / "out", CONFIGS["sparsegpt"], resume=True)
    assert not list(tmp_path.iterdir())


@pytest.mark.full
def test_a_damaged_state_is_said(checkpoint: Path, data: Path, tmp_path: Path, steps: Steps) -> None:
    steps.last = 1
    with pytest.raises(Killed):
        run(checkpoint, data, tmp_path / "out", CONFIGS["sparsegpt"])
    steps.last = None
    file = tmp_path / "out.run" / "oneshot_zeros-0.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"zeros-0.safetensors is damaged .* Start again with --overwrite"):
        run(checkpoint, data, tmp_path / "out", CONFIGS["sparsegpt"], resume=True)


@pytest.mark.full
def test_the_state_is_json_and_safetensors(checkpoint: Path, data: Path, tmp_path: Path, steps: Steps) -> None:
    steps.last = 3
    with pytest.raises(Killed):
        run(checkpoint, data, tmp_path / "out", replace_widths(CONFIGS["measured"]))
    folder = tmp_path / "out.run"
    assert {path.suffix for path in folder.iterdir()} == {".json", ".safetensors"}
    assert json.loads((folder / "oneshot_run.json").read_text())["model"] == str(checkpoint)


def replace_widths(values: dict[str, Any]) -> dict[str, Any]:
    """The same with scores, which make more steps."""
    return {**values, "criterion": "fisher", "allocation": "balanced", "repair": "refit"}
