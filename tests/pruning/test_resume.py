from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.pruning.runs import (
    CUT_STEPS,
    STEPS,
    Outcome,
    Poison,
    StopAfter,
    adapted_model,
    byte_model,
    make_trainer,
    pruned,
    pruning_config,
    train,
    train_with_trl,
)
from tests.thinned import thinned

from loraprune import PruningCallback, PruningConfig
from loraprune.pruning.resume import STATE_FILE, TENSOR_FILE, last_checkpoint, restore_

pytestmark = pytest.mark.filterwarnings("ignore:Training ended")

CONFIGS: dict[str, dict[str, Any]] = {
    "fisher, refit": {"criterion": "fisher"},
    "lora, refit": {"criterion": "lora"},
    "magnitude, refit": {"criterion": "magnitude"},
    "fisher, no bias correction": {"criterion": "fisher", "repair": "none", "average_bias_correction": False},
    "fisher, mask": {"criterion": "fisher", "repair": "none", "apply": "mask"},
    "compresso, refit": {"criterion": "compresso"},
    "compresso, no refit": {"criterion": "compresso", "repair": "none"},
    "compresso, mask": {"criterion": "compresso", "repair": "none", "apply": "mask"},
    "lora, mask": {"criterion": "lora", "repair": "none", "apply": "mask"},
}
BEFORE, AT_A_CUT, BETWEEN, AFTER = 2, 3, 4, 8
STOPS = {"fisher, refit": (BEFORE, AT_A_CUT, BETWEEN, AFTER), "fisher, mask": (BEFORE, AT_A_CUT, BETWEEN, AFTER)}
BY_DEFAULT = [
    ("fisher, refit", AT_A_CUT),
    ("fisher, refit", BETWEEN),
    ("lora, refit", BETWEEN),
    ("fisher, mask", BETWEEN),
    ("compresso, refit", BETWEEN),
]
EVERY = [(name, step) for name in CONFIGS for step in STOPS.get(name, (BETWEEN, AFTER))]
CASES = thinned(sorted(EVERY, key=lambda case: case not in BY_DEFAULT), len(BY_DEFAULT))

Whole = Callable[[str], tuple[PruningCallback, Outcome]]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """The run that nobody interrupted, made once for each configuration."""
    done: dict[str, tuple[PruningCallback, Outcome]] = {}

    def run(name: str) -> tuple[PruningCallback, Outcome]:
        if name not in done:
            folder = tmp_path_factory.mktemp("whole")
            done[name] = pruned(folder, pruning_config(**CONFIGS[name]), model=adapted_model(dropout=0.1))
        return done[name]

    return run


def interrupted(folder: Path, step: int, **changes: Any) -> Path:
    """A run that was stopped after ``step``; its checkpoint."""
    callback = PruningCallback(pruning_config(**changes))
    train(folder, [callback, StopAfter(step)], model=adapted_model(dropout=0.1))
    return folder / f"checkpoint-{step}"


def resumed(checkpoint: Path, **changes: Any) -> tuple[PruningCallback, Outcome]:
    model, callback = adapted_model(dropout=0.1), PruningCallback(pruning_config(**changes))
    callback.restore_(model, checkpoint)
    return callback, train(checkpoint.parent, [callback], model=model, resume=checkpoint)


def assert_same(first: tuple[PruningCallback, Outcome], second: tuple[PruningCallback, Outcome]) -> None:
    (callback, outcome), (expected_callback, expected) = first, second
    assert callback.run is not None
    assert expected_callback.run is not None
    assert callback.run.plan == expected_callback.run.plan
    assert callback.run.records == expected_callback.run.records
    assert outcome.losses == expected.losses
    weights, expected_weights = outcome.weights, expected.weights
    assert weights.keys() == expected_weights.keys()
    for name, value in weights.items():
        assert torch.equal(value, expected_weights[name]), name
    for name, value in callback.run.importance.items():
        assert torch.equal(value, expected_callback.run.importance[name]), name


class TestResume:
    @pytest.mark.parametrize(("name", "step"), CASES)
    def test_interrupted_and_resumed_ends_as_uninterrupted_bit_for_bit(
        self, tmp_path: Path, whole: Whole, name: str, step: int
    ) -> None:
        checkpoint = interrupted(tmp_path, step, **CONFIGS[name])
        resumption = resumed(checkpoint, **CONFIGS[name])
        assert resumption[1].trainer.state.global_step == STEPS
        assert_same(resumption, whole(name))

    def test_time_of_the_interrupted_run_counts(self, tmp_path: Path) -> None:
        checkpoint = interrupted(tmp_path, AFTER)
        state = json.loads((checkpoint / STATE_FILE).read_text())
        state["phases"] = {"loading": 7.0, "training after the cuts": 1000.0}
        (checkpoint / STATE_FILE).write_text(json.dumps(state))
        callback, _ = resumed(checkpoint)
        assert callback.phases.seconds["loading"] == 7.0
        assert callback.phases.seconds["training after the cuts"] > 1000.0
        assert callback.phases.earlier == 1007.0

    def test_a_state_of_a_version_that_knew_less_is_read(self, tmp_path: Path) -> None:
        checkpoint = interrupted(tmp_path, AFTER)
        state = json.loads((checkpoint / STATE_FILE).read_text())
        assert all(cut["errors"] for cut in state["cuts"])
        state["cuts"] = [{name: cut[name] for name in ("step", "ratio", "widths")} for cut in state["cuts"]]
        del state["phases"]
        (checkpoint / STATE_FILE).write_text(json.dumps(state))
        callback, _ = resumed(checkpoint)
        assert callback.run is not None
        assert [record.errors for record in callback.run.records] == [()] * len(CUT_STEPS)
        assert callback.phases.seconds.keys() == {"training after the cuts"}

    def test_a_run_may_be_interrupted_more_than_once(self, tmp_path: Path, whole: Whole) -> None:
        first = interrupted(tmp_path, BEFORE)
        model, callback = adapted_model(dropout=0.1), PruningCallback(pruning_config())
        callback.restore_(model, first)
        train(tmp_path, [callback, StopAfter(BETWEEN)], model=model, resume=first)
        second = last_checkpoint(tmp_path)
        assert second == tmp_path / f"checkpoint-{BETWEEN}"
        assert_same(resumed(second), whole("fisher, refit"))

    def test_trls_trainer_resumes_to_the_same_end(self, tmp_path: Path) -> None:
        uninterrupted = PruningCallback(pruning_config())
        expected = train_with_trl(tmp_path / "whole", [uninterrupted])
        train_with_trl(tmp_path / "cut", [PruningCallback(pruning_config()), StopAfter(BETWEEN)])
        checkpoint = last_checkpoint(tmp_path / "cut")
        assert checkpoint is not None
        model, callback = byte_model(), PruningCallback(pruning_config())
        callback.restore_(model, checkpoint)
        outcome = train_with_trl(tmp_path / "cut", [callback], model=model, resume=checkpoint)
        assert_same((callback, outcome), (uninterrupted, expected))

    def test_the_history_goes_on_where_it_stopped(self, tmp_path: Path) -> None:
        callback, _ = resumed(interrupted(tmp_path, BETWEEN))
        assert [entry["step"] for entry in callback.history] == list(range(1, STEPS + 1))
        seconds = [entry["seconds"] for entry in callback.history]
        assert seconds == sorted(seconds)

    @pytest.mark.filterwarnings("ignore:Step 2")
    def test_steps_that_were_skipped_before_the_interruption_are_remembered(self, tmp_path: Path) -> None:
        train(tmp_path, [Poison([2]), PruningCallback(pruning_config()), StopAfter(BETWEEN)])
        callback, _ = resumed(tmp_path / f"checkpoint-{BETWEEN}")
        assert callback.skipped_steps == [2]

    def test_checkpoints_of_the_steps_between_hold_the_state_too(self, tmp_path: Path, whole: Whole) -> None:
        callback = PruningCallback(pruning_config())
        train(tmp_path, [callback], model=adapted_model(dropout=0.1), save_strategy="steps", save_steps=4)
        assert_same(resumed(tmp_path / "checkpoint-8"), whole("fisher, refit"))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a run that was stopped between two cuts; no test changes it."""
    return interrupted(tmp_path_factory.mktemp("run"), BETWEEN)


class TestRefusal:
    def test_other_pruning_options_are_refused_with_what_changed(self, checkpoint: Path) -> None:
        callback = PruningCallback(pruning_config(ratio=0.25, cuts=4))
        with pytest.raises(ValueError, match=r"\(ratio: 0\.5 -> 0\.25, cuts: 3 -> 4\).*--overwrite"):
            callback.restore_(adapted_model(), checkpoint)

    def test_a_refused_model_is_left_as_it_was(self, checkpoint: Path) -> None:
        model = adapted_model()
        before = {name: value.clone() for name, value in model.state_dict().items()}
        with pytest.raises(ValueError, match="other pruning options"):
            restore_(model, checkpoint, PruningConfig())
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())

    def test_another_model_is_refused(self, checkpoint: Path) -> None:
        with pytest.raises(ValueError, match="for another model"):
            restore_(adapted_model(num_hidden_layers=3), checkpoint, pruning_config())

    def test_a_folder_without_state_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match=f"has no state of a pruning run \\({STATE_FILE} is missing"):
            PruningCallback(pruning_config()).restore_(adapted_model(), tmp_path)

    def test_going_on_without_restoring_is_refused_before_the_first_cut(self, tmp_path: Path) -> None:
        checkpoint = interrupted(tmp_path, BEFORE)
        trainer = make_trainer(tmp_path, [PruningCallback(pruning_config())])
        with pytest.raises(ValueError, match=r"Call PruningCallback\.restore_\(model, checkpoint\) before"):
            trainer.train(resume_from_checkpoint=str(checkpoint))

    def test_going_on_without_restoring_is_refused_after_a_cut(self, checkpoint: Path) -> None:
        trainer = make_trainer(checkpoint.parent, [PruningCallback(pruning_config())])
        with pytest.raises((ValueError, RuntimeError), match=r"restore_|size mismatch"):
            trainer.train(resume_from_checkpoint=str(checkpoint))

    def test_the_folder_around_checkpoints_is_refused_with_the_name_of_one(self, checkpoint: Path) -> None:
        with pytest.raises(FileNotFoundError, match=f"Name a checkpoint in it, such as .*{checkpoint.name}"):
            PruningCallback(pruning_config()).restore_(adapted_model(), checkpoint.parent)


class TestLastCheckpoint:
    def test_the_newest_is_found_by_number(self, tmp_path: Path) -> None:
        for step in (9, 10, 100):
            (tmp_path / f"checkpoint-{step}").mkdir()
            (tmp_path / f"checkpoint-{step}" / STATE_FILE).write_text("{}")
        assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-100"

    def test_one_that_is_not_complete_does_not_count(self, tmp_path: Path) -> None:
        for step in (4, 8):
            (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / "checkpoint-4" / STATE_FILE).write_text("{}")
        (tmp_path / "checkpoint-8" / TENSOR_FILE).write_text("")
        (tmp_path / "checkpoint-best").mkdir()
        assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-4"

    def test_a_folder_without_any_has_none(self, tmp_path: Path) -> None:
        assert last_checkpoint(tmp_path) is None
        assert last_checkpoint(tmp_path / "missing") is None


def test_the_state_is_readable_and_holds_no_pickle(checkpoint: Path) -> None:
    state = json.loads((checkpoint / STATE_FILE).read_text())
    assert [cut["step"] for cut in state["cuts"]] == CUT_STEPS[:1]
    assert state["config"]["ratio"] == 0.5
    ours = sorted(path.name for path in checkpoint.glob("loraprune*"))
    assert ours == [STATE_FILE, TENSOR_FILE]


def test_only_weights_that_a_refit_changed_are_saved(tmp_path: Path) -> None:
    from safetensors import safe_open

    def saved_weights(step: int, **changes: Any) -> list[str]:
        folder = tmp_path / f"{step}"
        shutil.rmtree(folder, ignore_errors=True)
        with safe_open(interrupted(folder, step, **changes) / TENSOR_FILE, "pt") as file:
            return sorted(name for name in file.keys() if name.startswith("weight/"))  # noqa: SIM118

    assert saved_weights(BEFORE) == []
    assert saved_weights(BETWEEN, repair="none") == []
    assert saved_weights(BETWEEN) == [
        f"weight/model.layers.{layer}.{module}.weight"
        for layer in (0, 1)
        for module in ("mlp.down_proj", "self_attn.o_proj")
    ]
