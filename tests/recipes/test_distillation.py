"""Tuning that follows the dense model: from a pruned checkpoint, and in the run that prunes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from tests.checkpoints import byte_model, tiny_checkpoint
from tests.finished_run import QUICK
from tests.models import token_ids
from tests.tasks.models import tiny_vit
from transformers import AutoModelForCausalLM, TrainerCallback

import loraprune.recipes.steps.train as steps
from loraprune import OneshotConfig, PruningConfig, RunOptions, oneshot, prune, recover
from loraprune.metrics.divergence import Divergence
from loraprune.pruning.errors import InterruptedRunError
from loraprune.tasks.distillation import Teacher

QUIET: dict[str, Any] = {"eval_sequences": 0, "latency": False, "report": False}
TRAINING = {**QUICK, "max_steps": 30, "learning_rate": 5e-3}
ROWS = [token_ids(1, 32, seed=seed, vocabulary=100)[0] for seed in range(4)]


@pytest.fixture(scope="module")
def cut(checkpoint: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a pruned checkpoint; no test changes it."""
    folder = tmp_path_factory.mktemp("cut") / "pruned"
    config = OneshotConfig(ratio=0.5, calibration_sequences=8, max_length=32)
    oneshot(checkpoint, data, config, options=RunOptions(output=folder, **QUIET))
    return folder


def recovered(model: Any, data: Path, training: dict[str, Any] = TRAINING, **options: Any) -> Any:
    return recover(model, data, training=training, options=RunOptions(**{**QUIET, **options}))


def test_a_model_that_follows_ends_nearer_to_the_dense_one(checkpoint: Path, cut: Path, data: Path) -> None:
    divergence = Divergence(AutoModelForCausalLM.from_pretrained(checkpoint), ROWS)
    usual, following = (recovered(cut, data, distill=share) for share in (0.0, 1.0))
    assert divergence.of(following.model) < 0.95 * divergence.of(usual.model)
    settings = following.run_record.settings.distillation
    assert settings == {"share": 1.0, "teacher": str(checkpoint)}
    assert usual.run_record.settings.distillation is None
    assert following.run_record.recipe["distill"] == 1.0


def test_the_teacher_of_a_recovered_model_is_the_first_of_its_line(
    checkpoint: Path, cut: Path, data: Path, tmp_path: Path
) -> None:
    recovered(cut, data, QUICK, output=tmp_path / "once")
    again = recovered(tmp_path / "once", data, QUICK, distill=0.5)
    assert again.run_record.settings.distillation == {"share": 0.5, "teacher": str(checkpoint)}


def test_a_teacher_may_be_named(cut: Path, data: Path, tmp_path: Path) -> None:
    other = tiny_checkpoint(tmp_path / "other")
    assert recovered(cut, data, QUICK, teacher=other).run_record.settings.distillation["teacher"] == str(other)


@pytest.mark.parametrize("in_memory", [False, True])
def test_a_run_that_prunes_hears_the_teacher_after_the_last_cut(
    in_memory: bool, checkpoint: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[bool] = []
    build_trainer = steps.build_trainer

    def watched(prepared: Any, model: Any, pruning: Any, callbacks: Any, teacher: Teacher | None = None) -> Any:
        trainer = build_trainer(prepared, model, pruning, callbacks, teacher)
        assert teacher is not None
        assert teacher.model is not model
        is_heard = teacher.is_heard
        teacher.is_heard = lambda: heard.append(is_heard()) or heard[-1]  # type: ignore[func-returns-value]
        return trainer

    monkeypatch.setattr("loraprune.recipes.prune.build_trainer", watched)
    config = PruningConfig(ratio=0.5, calibration_sequences=8, prune_end=0.5, cuts=2)
    results = []
    for share in (1.0, 0.0):
        if share == 0.0:
            monkeypatch.setattr("loraprune.recipes.prune.build_trainer", build_trainer)
        model = AutoModelForCausalLM.from_pretrained(checkpoint) if in_memory else checkpoint
        given = {"tokenizer": str(checkpoint)} if in_memory else {}
        results.append(
            prune(model, data, config, training=TRAINING, options=RunOptions(distill=share, **QUIET), **given)
        )
    following, usual = results
    assert heard == [False] * 15 + [True] * 15
    assert following.plan == usual.plan
    divergence = Divergence(AutoModelForCausalLM.from_pretrained(checkpoint), ROWS)
    assert divergence.of(following.model) < divergence.of(usual.model)


def test_a_run_with_a_teacher_is_gone_on_with_in_the_same_way(checkpoint: Path, data: Path, tmp_path: Path) -> None:
    class Stop(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 4:
                raise KeyboardInterrupt

    def run(*callbacks: TrainerCallback, distill: float = 1.0, **options: Any) -> Any:
        return prune(
            checkpoint,
            data,
            PruningConfig(ratio=0.5, calibration_sequences=8, prune_end=0.5, cuts=2),
            training={**QUICK, "save_steps": 1},
            options=RunOptions(**{**QUIET, "eval_data": data}, distill=distill, **options),
            callbacks=callbacks,
        )

    out = tmp_path / "out"
    with pytest.raises(InterruptedRunError):
        run(Stop(), output=out)
    with pytest.raises(ValueError, match=r"distill: 1\.0 -> 0\.0"):
        run(output=out, resume=True, distill=0.0)
    resumed, whole = run(output=out, resume=True).model.state_dict(), run().model.state_dict()
    assert all(torch.equal(value, whole[name]) for name, value in resumed.items())


class TestRefusals:
    def test_nothing_says_what_a_checkpoint_was_made_from(self, checkpoint: Path, data: Path) -> None:
        with pytest.raises(
            ValueError, match=r"has no record of the model that it was made from\. Name the dense model with --teacher"
        ):
            recovered(checkpoint, data, distill=1.0)

    def test_the_model_that_it_was_made_from_is_gone(self, data: Path, tmp_path: Path) -> None:
        base = tiny_checkpoint(tmp_path / "base")
        config = OneshotConfig(ratio=0.5, criterion="magnitude", repair="none")
        oneshot(base, data, config, options=RunOptions(output=tmp_path / "pruned", **QUIET))
        base.rename(tmp_path / "elsewhere")
        with pytest.raises(ValueError, match=r"was made from .*base, which cannot be read: .* --teacher"):
            recovered(tmp_path / "pruned", data, distill=1.0)

    def test_teachers_of_another_vocabulary(self, cut: Path, data: Path, tmp_path: Path) -> None:
        byte_model(vocab_size=300).save_pretrained(tmp_path / "other")
        with pytest.raises(ValueError, match=r"has 300 tokens, and .*: they do not share a tokenizer"):
            recovered(cut, data, teacher=tmp_path / "other")

    def test_a_teacher_that_nothing_follows(self, cut: Path, checkpoint: Path, data: Path) -> None:
        with pytest.raises(ValueError, match="You passed a teacher, and distill is 0"):
            recovered(cut, data, distill=0.0, teacher=checkpoint)

    def test_a_run_that_prunes_nothing(self, checkpoint: Path, data: Path) -> None:
        with pytest.raises(ValueError, match="the model would follow itself"):
            prune(checkpoint, data, PruningConfig(ratio=0.0), options=RunOptions(distill=1.0, **QUIET))

    def test_other_tasks(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="distill is for causal language models"):
            prune(tiny_vit(), Dataset.from_list([{"image": [0], "label": 0}]), options=RunOptions(distill=1.0, **QUIET))

    @pytest.mark.parametrize("given", [{"label_smoothing_factor": 0.1}, {"loss_type": "dft"}], ids=str)
    def test_another_loss(self, given: dict[str, Any], cut: Path, data: Path) -> None:
        (name,) = given
        with pytest.raises(ValueError, match=f"{name} is .*, and distill replaces the loss"):
            recovered(cut, data, {**QUICK, **given}, distill=1.0)
