"""The dense model that tuning follows: which one it is, and whether it goes with the run."""

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
    """A teacher that was found and is not loaded.

    Attributes:
        source: the dense model.
        share: of the loss that follows it.
        quantization: that it is loaded with, as the run's own model is; None of other models.
        sharded: whether the processes share its weights.
    """

    source: ModelSource
    share: float
    quantization: str | None = None
    sharded: bool = False

    def load(self, dtype: torch.dtype, device: torch.device, model: PreTrainedModel) -> Teacher:
        """Load it.

        Args:
            dtype: to work in.
            device: of the run.
            model: of the run, as it is before the first cut; copied where it is the teacher and was passed in.
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
    """The teacher of a run, once it is sure that it goes with everything else; None where there is none to follow.

    Args:
        options: of the run.
        source: of the model that is tuned.
        task: that it is made for.
        arguments: of its Trainer.
        recovery: whether the model was pruned before.
        prunes: whether groups go during the run.

    Raises:
        ValueError: one was asked for, and cannot be followed.
    """
    share = options.distill
    if share == 0.0 or (share is None and options.teacher is None):
        if options.teacher is not None:
            raise ValueError("teacher was given, and distill is 0, so that nothing follows it. Leave one out.")
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
            "distill was given, and nothing is pruned in this run: the model would follow itself. Name the model to "
            "follow with --teacher, or leave it out."
        )
    if found.vocabulary != source.vocabulary:
        raise ValueError(
            f"The teacher {found.name} has {found.vocabulary} tokens, and {source.name} has {source.vocabulary}: they "
            "do not share a tokenizer. Name the model that this one was made from with --teacher, or say --distill 0."
        )
    return TeacherSource(source=found, share=share, sharded=options.sharded)


def _check_goes_together(task: Task, arguments: TrainingArguments) -> None:
    if task.name != "causal-lm":
        raise ValueError(
            f"distill is for causal language models, and the task of this one is {task.name}. Leave it out."
        )
    # Before version 1.15, trl's usual loss was called chunked_nll.
    for name, usual in (("label_smoothing_factor", (0.0,)), ("loss_type", ("nll", "chunked_nll"))):
        value = getattr(arguments, name, usual[0])
        if value not in usual:
            raise ValueError(f"{name} is {value!r}, and with distill the loss is another one. Leave one of them out.")


def _model_before(source: ModelSource, options: RunOptions) -> ModelSource:
    """The dense model that a pruned checkpoint was made from, as its record says.

    Raises:
        ValueError: it is not known, or cannot be read.
    """
    history = (
        base_pruning_of(source.loaded) if source.loaded is not None else base_pruning(source.name, source.revision)
    )
    while history is not None and history.base_pruning is not None:
        history = history.base_pruning
    name = None if history is None else history.base_model
    ways = "Name the dense model with --teacher, or say --distill 0 to tune on the text alone."
    if name is None:
        raise ValueError(f"Nothing beside {source.name} says which model it was made from. {ways}")
    try:
        return ModelSource.of(name, trust_remote_code=options.trust_remote_code, described=False)
    except CheckpointError as error:
        raise ValueError(f"{source.name} was made from {name}, which cannot be read: {error} {ways}") from error
