"""The teacher of a run: the dense model that tuning follows."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING

from loraprune.checkpoint.load import CheckpointError
from loraprune.checkpoint.source import ModelSource
from loraprune.record.history import base_pruning, base_pruning_of
from loraprune.tasks.distillation import Teacher

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, TrainingArguments

    from loraprune.tasks.options import RunOptions
    from loraprune.tasks.task import Task


@dataclass(frozen=True, kw_only=True)
class TeacherSource:
    """A teacher that is not loaded yet.

    Attributes:
        source: source of the dense model.
        share: share of the loss that follows it.
        quantization: quantization to load it with, if it is the run's own model; None for other models.
        sharded: whether its weights are sharded over the processes.
    """

    source: ModelSource
    share: float
    quantization: str | None = None
    sharded: bool = False

    def load(self, dtype: torch.dtype, device: torch.device, model: PreTrainedModel) -> Teacher:
        """Load the teacher.

        Args:
            dtype: dtype to work in.
            device: device of the run.
            model: model of the run before the first cut; copied if it is the teacher and was passed in.
        """
        if self.source.loaded is model:
            teacher = copy.deepcopy(model)
        else:
            teacher = self.source.load(dtype, device, quantization=self.quantization, sharded=self.sharded)
        teacher.requires_grad_(False)
        return Teacher(model=teacher.eval(), share=self.share)


def find_teacher(
    options: RunOptions, source: ModelSource, task: Task, arguments: TrainingArguments, *, recovery: bool, prunes: bool
) -> TeacherSource | None:
    """Return the teacher of a run, checked against the other options, or None without distillation.

    Args:
        options: options of the run.
        source: source of the model to tune.
        task: task of the model.
        arguments: arguments of the Trainer.
        recovery: whether the run is a recovery.
        prunes: whether the run removes groups.

    Raises:
        ValueError: the options ask for a teacher that cannot be used.
    """
    share = options.distill
    if share == 0.0 or (share is None and options.teacher is None):
        if options.teacher is not None:
            raise ValueError("You passed a teacher, and distill is 0, so nothing follows it. Leave one out.")
        return None
    share = 1.0 if share is None else share
    _check_goes_together(task, arguments)
    if options.teacher is not None:
        found = ModelSource.of(options.teacher, trust_remote_code=options.trust_remote_code, described=False)
    elif prunes:
        return TeacherSource(source=source, share=share, quantization=options.quantization, sharded=options.sharded)
    elif recovery:
        found = _model_before(source, options)
    else:
        raise ValueError(
            "You passed distill, and this run prunes nothing: the model would follow itself. Name the model to follow "
            "with --teacher, or leave distill out."
        )
    if found.vocabulary != source.vocabulary:
        raise ValueError(
            f"The teacher {found.name} has {found.vocabulary} tokens, and {source.name} has {source.vocabulary}: they "
            "do not share a tokenizer. Name the model that this one was made from with --teacher, or use --distill 0."
        )
    return TeacherSource(source=found, share=share, sharded=options.sharded)


def _check_goes_together(task: Task, arguments: TrainingArguments) -> None:
    if task.name != "causal-lm":
        raise ValueError(f"distill is for causal language models, and this model's task is {task.name}. Leave it out.")
    # Before version 1.15, trl's usual loss was called chunked_nll.
    for name, usual in (("label_smoothing_factor", (0.0,)), ("loss_type", ("nll", "chunked_nll"))):
        value = getattr(arguments, name, usual[0])
        if value not in usual:
            raise ValueError(f"{name} is {value!r}, and distill replaces the loss. Leave one of them out.")


def _model_before(source: ModelSource, options: RunOptions) -> ModelSource:
    """Return the dense model that a pruned checkpoint was made from, according to its record.

    Raises:
        ValueError: it is unknown or cannot be read.
    """
    history = (
        base_pruning_of(source.loaded) if source.loaded is not None else base_pruning(source.name, source.revision)
    )
    while history is not None and history.base_pruning is not None:
        history = history.base_pruning
    name = None if history is None else history.base_model
    ways = "Name the dense model with --teacher, or use --distill 0 to tune without a teacher."
    if name is None:
        raise ValueError(f"{source.name} has no record of the model that it was made from. {ways}")
    try:
        return ModelSource.of(name, trust_remote_code=options.trust_remote_code, described=False)
    except CheckpointError as error:
        raise ValueError(f"{source.name} was made from {name}, which cannot be read: {error} {ways}") from error
