"""A Trainer whose callback leads resumes only from the checkpoint that its model was restored from."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
from tests.pruning.runs import STEPS, StopAfter, adapted_model, make_trainer, pruning_config, train
from transformers import Trainer

from loraprune import PruningCallback


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a run that was stopped after a cut, beside an earlier one; no test changes it."""
    folder = tmp_path_factory.mktemp("run")
    train(folder, [PruningCallback(pruning_config()), StopAfter(5)], save_strategy="steps", save_steps=4)
    return folder / "checkpoint-5"


def led(folder: Path, restored: Path | None = None) -> tuple[PruningCallback, Trainer]:
    callback, model = PruningCallback(pruning_config()), adapted_model()
    if restored is not None:
        callback.restore_(model, restored)
    trainer = make_trainer(folder, [callback], model=model)
    callback.lead_(trainer)
    return callback, trainer


@pytest.mark.parametrize("named", [True, False], ids=["by its folder", "by True"])
def test_a_model_that_was_not_restored_is_refused_before_the_adapter_is_loaded(named: bool, checkpoint: Path) -> None:
    _, trainer = led(checkpoint.parent)
    with pytest.raises(ValueError, match=r"the model was not restored from it\. Call callback\.restore_\(model, "):
        trainer.train(resume_from_checkpoint=str(checkpoint) if named else True)


def test_a_model_that_was_restored_from_another_checkpoint_is_refused(checkpoint: Path) -> None:
    _, trainer = led(checkpoint.parent, checkpoint.with_name("checkpoint-4"))
    with pytest.raises(ValueError, match=r"was restored from .*checkpoint-4, and training resumes from .*checkpoint-5"):
        trainer.train(resume_from_checkpoint=True)


def test_training_anew_with_a_restored_model_warns(checkpoint: Path, tmp_path: Path) -> None:
    _, trainer = led(tmp_path, checkpoint)
    with pytest.warns(UserWarning, match=r"without the adapter of that checkpoint\. To resume, pass trainer\.train"):
        trainer.train()


def test_a_run_goes_on_twice_in_one_process(checkpoint: Path, tmp_path: Path) -> None:
    callback, trainer = led(tmp_path, checkpoint)
    trainer.args.save_strategy, trainer.args.save_steps = "steps", STEPS
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="The model was restored")
        trainer.train(resume_from_checkpoint=str(checkpoint))
        trainer.train(resume_from_checkpoint=True)  # from its end
    assert callback.run is not None
    assert callback.run.ratio == pytest.approx(0.5, abs=0.02)


def test_a_checkpoint_without_pruning_is_none_of_its_business(tmp_path: Path) -> None:
    train(tmp_path, [StopAfter(2)])
    callback = PruningCallback(pruning_config(ratio=0.0))
    trainer = make_trainer(tmp_path, [callback])
    callback.lead_(trainer)
    trainer.train(resume_from_checkpoint=True)
    assert trainer.state.global_step == STEPS
