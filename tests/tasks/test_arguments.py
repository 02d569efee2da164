"""Training arguments that a user gives as an object: used as they are, but for what the machine and model settle."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import Seq2SeqTrainingArguments, TrainingArguments
from trl import SFTConfig

from loraprune.tasks.arguments import given_values, rate_for, training_arguments
from loraprune.tasks.registry import TASKS

CPU = torch.device("cpu")
BY_NAME = {task.name: task for task in TASKS}


def settled(task: str, given: Any, tmp_path: Path, **facts: Any) -> tuple[Any, int | None]:
    source: Any = SimpleNamespace(**{"device": CPU, "context": 512, "recomputes": True, **facts})
    return training_arguments(BY_NAME[task], given, source, run_dir=tmp_path / "run")


def sft(tmp_path: Path, **values: Any) -> SFTConfig:
    return SFTConfig(str(tmp_path / "mine"), **{"bf16": False, "report_to": "none", **values})


def test_what_was_said_stays_and_what_was_not_has_the_trainers_own_defaults(tmp_path: Path) -> None:
    given = sft(tmp_path, learning_rate=3e-4, max_steps=7)
    arguments, _ = settled("causal-lm", given, tmp_path)
    assert (arguments.learning_rate, arguments.max_steps) == (3e-4, 7)
    assert arguments.num_train_epochs == given.num_train_epochs
    assert arguments.lr_scheduler_type == given.lr_scheduler_type
    assert arguments.output_dir == str(tmp_path / "run")
    assert given.output_dir == str(tmp_path / "mine")


def test_a_length_that_nobody_asked_for_fits_the_model(tmp_path: Path) -> None:
    arguments, length = settled("causal-lm", sft(tmp_path), tmp_path)
    assert (arguments.max_length, length) == (512, 512)
    with pytest.raises(ValueError, match="longer than the model's context of 512"):
        settled("causal-lm", sft(tmp_path, max_length=600), tmp_path)


def test_activations_are_not_computed_again_where_the_model_cannot(tmp_path: Path) -> None:
    arguments, _ = settled("causal-lm", sft(tmp_path), tmp_path, recomputes=False)
    assert not arguments.gradient_checkpointing


@pytest.mark.parametrize(
    ("task", "given", "message"),
    [
        ("causal-lm", TrainingArguments, "takes a SFTConfig of trl"),
        ("text-to-text", TrainingArguments, "takes a Seq2SeqTrainingArguments of transformers"),
        ("image-classification", SFTConfig, None),
        ("text-to-text", Seq2SeqTrainingArguments, None),
    ],
)
def test_arguments_of_another_trainer_are_refused(task: str, given: Any, message: str | None, tmp_path: Path) -> None:
    arguments = given(output_dir=str(tmp_path / "mine"), use_cpu=True, report_to="none")
    if message is None:
        assert settled(task, arguments, tmp_path)[0].output_dir == str(tmp_path / "run")
        return
    with pytest.raises(ValueError, match=message):
        settled(task, arguments, tmp_path)


def test_what_was_said_is_told_apart_from_defaults(tmp_path: Path) -> None:
    said = given_values(sft(tmp_path, learning_rate=3e-4, logging_steps=3))
    assert {"learning_rate": 3e-4, "logging_steps": 3}.items() <= said.items()
    assert not {"output_dir", "weight_decay", "max_length"} & said.keys()
    assert given_values({"seed": 1}) == {"seed": 1}


@pytest.mark.parametrize(
    ("hidden_size", "rate"), [(16, 5e-3), (128, 4.3e-3), (576, 1.3e-3), (2000, 5e-4), (4096, 2.9e-4)]
)
def test_the_learning_rate_falls_with_the_size_of_the_model(hidden_size: int, rate: float) -> None:
    assert rate_for(hidden_size) == rate
