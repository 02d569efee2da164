"""The tasks that models can be tuned for, and detection of a model's task."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from loraprune.architectures import spec_for
from loraprune.checkpoint.load import loading_class
from loraprune.checkpoint.source import ModelSource
from loraprune.tasks.causal_lm import CausalLM
from loraprune.tasks.classification import ImageClassification, TextClassification
from loraprune.tasks.seq2seq import TextToText
from loraprune.tasks.task import Task

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

__all__ = [
    "TASKS",
    "Task",
    "TaskError",
    "task_for",
    "task_of_config",
    "task_of_model",
    "task_of_source",
    "tunable_task",
]

TASKS: tuple[Task, ...] = (CausalLM(), TextToText(), ImageClassification(), TextClassification())


class TaskError(ValueError):
    """The model's task is not supported here."""


def _by_auto_class(auto_class: str | None) -> Task | None:
    return next((task for task in TASKS if task.auto_class == auto_class), None)


def task_for(class_names: Sequence[str], auto_class: str) -> Task:
    """Return the task of a model.

    Args:
        class_names: its class and then its base classes, or the classes that its config names; empty if it names none.
        auto_class: auto class that loads models of its family, for a class that transformers does not have.

    Raises:
        TaskError: the class is from transformers but belongs to none of the tasks.
    """
    import transformers

    for name in class_names:
        task = _by_auto_class(loading_class(name))
        if task is not None:
            return task
    if class_names and hasattr(transformers, class_names[0]):
        known = ", ".join(f"{task.name} ({task.auto_class})" for task in TASKS)
        raise TaskError(
            f"The model is a {class_names[0]}, and models are tuned for: {known}. Load it by one of these classes, "
            "such as AutoModelForSequenceClassification.from_pretrained(NAME, num_labels=…), and pass the loaded model."
        )
    default = _by_auto_class(auto_class)
    if default is None:
        raise TaskError(f"Models that {auto_class} loads cannot be tuned yet.")
    return default


def task_of_model(model: PreTrainedModel, auto_class: str) -> Task:
    """Return the task of a loaded model."""
    return task_for([base.__name__ for base in type(model).__mro__], auto_class)


def task_of_config(config: PretrainedConfig, auto_class: str) -> Task:
    """Return the task of a checkpoint."""
    return task_for(list(getattr(config, "architectures", None) or ())[:1], auto_class)


def task_of_source(source: ModelSource) -> Task:
    """Return the task of a model before its weights are loaded."""
    if source.loaded is not None:
        return task_of_model(source.loaded, source.auto_class)
    return task_of_config(source.config, source.auto_class)


def tunable_task(source: ModelSource) -> Task:
    """Return the task of a model that can be tuned for it.

    Raises:
        ValueError: it cannot: the model's class, its family or its settings are for something else.
    """
    spec_for(source.config)
    task = task_of_source(source)
    task.check_model(source.config)
    return task
