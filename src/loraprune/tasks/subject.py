"""The model of a run before its weights are loaded, and what turns data into its input."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from loraprune.architectures import spec_for
from loraprune.checkpoint.load import default_device, load_config, load_tokenizer, meta_model
from loraprune.tasks.options import RunOptions
from loraprune.tasks.registry import task_of_config, task_of_model
from loraprune.tasks.task import Task

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True, kw_only=True)
class Subject:
    """The model of a run before its weights are loaded.

    Attributes:
        loaded: the model where the user gave one, else None.
        origin: checkpoint that it comes from; None where a model that was given names none.
        config: a copy of the model's.
        task: that the model is tuned for.
        device: to train on.
        shapes: the model that was given, or one without weights.
    """

    loaded: PreTrainedModel | None
    origin: str | None
    config: PretrainedConfig
    task: Task
    device: torch.device
    shapes: PreTrainedModel

    @property
    def name(self) -> str:
        """For the record."""
        return self.origin or "model"


def find_subject(model: str | Path | PreTrainedModel, options: RunOptions) -> Subject:
    """Read a checkpoint's config, or that of a model, and find out what it is tuned for."""
    if isinstance(model, (str, Path)):
        model = str(Path(model).expanduser()) if str(model).startswith("~") else str(model)
        config = load_config(model, trust_remote_code=options.trust_remote_code, revision=options.revision)
        task = _find_task(None, config, options)
        return Subject(
            loaded=None,
            origin=model,
            config=copy.deepcopy(config),
            task=task,
            device=default_device(),
            shapes=meta_model(config, task.auto_class),
        )
    config = copy.deepcopy(model.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config  # it describes how this model was loaded, and not what it is
    if not getattr(config, "architectures", None):
        config.architectures = [type(model).__name__]
    return Subject(
        loaded=model,
        origin=str(getattr(model.config, "_name_or_path", "") or "") or None,
        config=config,
        task=_find_task(model, model.config, options),
        device=next(model.parameters()).device,
        shapes=model,
    )


def _find_task(loaded: PreTrainedModel | None, config: PretrainedConfig, options: RunOptions) -> Task:
    """The task of the model, once it is sure that what was asked for goes with it."""
    auto_class = spec_for(config).auto_class
    task = task_of_config(config, auto_class) if loaded is None else task_of_model(loaded, auto_class)
    task.check_model(config)
    if options.prompt and not task.writes_text:
        raise ValueError(f"A prompt was given, and a model for {task.name} writes no text. Leave the prompt out.")
    return task


def find_tokenizer(
    tokenizer: PreTrainedTokenizerBase | str | Path | None, subject: Subject, options: RunOptions
) -> PreTrainedTokenizerBase | None:
    """The tokenizer that was given, or the one of a checkpoint: the one named, or the model's own."""
    if not subject.task.has_tokenizer:
        if tokenizer is not None:
            raise ValueError(f"A tokenizer was given, but a model for {subject.task.name} reads no text. Leave it out.")
        return None
    if isinstance(tokenizer, (str, Path)):
        return load_tokenizer(str(tokenizer), trust_remote_code=options.trust_remote_code)
    if tokenizer is not None:
        return tokenizer
    if subject.origin is None:
        raise ValueError("The model that was passed in names no checkpoint to load a tokenizer from: pass tokenizer=.")
    return load_tokenizer(subject.origin, trust_remote_code=options.trust_remote_code, revision=options.revision)
