"""Checks before any long work: everything a run needs but the weights, cheapest first."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from loraprune.allocation import check_reachable, ratio_for_parameters
from loraprune.architectures import spec_for
from loraprune.evaluation.batches import Collator, HeldOutRows
from loraprune.evaluation.perplexity import HeldOut
from loraprune.export import check_relaxed_class
from loraprune.recipes.arguments import ModelFacts, training_arguments
from loraprune.recipes.folders import check_folders, check_same_adapter, check_sources_outside_output, check_space
from loraprune.recipes.loading import (
    checkpoint_dtype,
    context_of,
    default_device,
    load_config,
    load_model,
    load_tokenizer,
    meta_model,
    working_dtype,
)
from loraprune.recipes.lora import LoraOptions, lora_config
from loraprune.recipes.options import RunOptions
from loraprune.recipes.rows import SplitRows, check_token_ids, split_rows
from loraprune.recipes.tasks import Task, task_of_config, task_of_model
from loraprune.recipes.tasks.task import Setup
from loraprune.structure import Structure, describe
from loraprune.training.callback import SLICEABLE_OPTIMIZERS
from loraprune.training.config import PruningConfig
from loraprune.widths import legal_widths

if TYPE_CHECKING:
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase, TrainingArguments


@dataclass(kw_only=True)
class Job:
    """A run that was checked and can begin.

    Attributes:
        name: of the checkpoint, for the record.
        task: that the model is tuned for.
        model: given by the user, or None: it is loaded from ``name``.
        config: of the model before pruning.
        tokenizer: of a model that reads text, else None; ``image_processor``: likewise.
        context: tokens that the model can read at most, or None.
        max_length: tokens in a row at most; None where rows are no text.
        rows: what to train on and what to measure on.
        stored_dtype: dtype of the checkpoint, and of the result.
        checkpoint: to resume from.
    """

    name: str
    task: Task
    model: PreTrainedModel | None
    config: PretrainedConfig
    tokenizer: PreTrainedTokenizerBase | None
    image_processor: Any
    pruning: PruningConfig
    arguments: TrainingArguments
    context: int | None
    max_length: int | None
    lora: LoraConfig
    rows: SplitRows
    structure: Structure
    stored_dtype: torch.dtype
    device: torch.device
    options: RunOptions
    checkpoint: Path | None

    @property
    def processor(self) -> Any:
        """What turns raw rows into the model's input: tokenizer or image processor."""
        return self.image_processor if self.tokenizer is None else self.tokenizer

    @property
    def train_rows(self) -> Dataset:
        """Rows to train on."""
        return self.rows.train

    @property
    def held_out(self) -> HeldOut | HeldOutRows | None:
        """Rows to measure on, or None."""
        return self.rows.held_out

    @property
    def collator(self) -> Collator | None:
        """Makes batches; None leaves that to the Trainer."""
        return self.rows.collator

    def load_model(self) -> PreTrainedModel:
        """The checkpoint's model, on the job's device and in the dtype to train in."""
        return load_model(
            self.name,
            working_dtype(self.stored_dtype, self.device),
            self.device,
            auto_class=self.task.auto_class,
            trust_remote_code=self.options.trust_remote_code,
            revision=self.options.revision,
        )


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


def _subject(model: str | PreTrainedModel, options: RunOptions) -> Subject:
    """Read a checkpoint's config, or that of a model, and find out what it is tuned for."""
    if isinstance(model, str):
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


def prepare(
    model: str | Path | PreTrainedModel,
    dataset: str | Path | Dataset,
    pruning: PruningConfig,
    training: Mapping[str, Any],
    lora: LoraConfig | LoraOptions | None,
    tokenizer: PreTrainedTokenizerBase | str | Path | None,
    options: RunOptions,
    run_dir: Path,
    *,
    image_processor: Any = None,
    collator: Collator | None = None,
) -> Job:
    """Check all that was given, cheapest first, and load everything but the weights."""
    checkpoint = check_folders(options)
    if isinstance(model, (str, Path)):
        model = str(Path(model).expanduser()) if str(model).startswith("~") else str(model)
    check_sources_outside_output(model, dataset, options)
    subject = _subject(model, options)
    task, config, loaded, shapes = subject.task, subject.config, subject.loaded, subject.shapes
    context = context_of(config, shapes) if task.has_tokenizer else None
    facts = ModelFacts(device=subject.device, context=context, recomputes=shapes.supports_gradient_checkpointing)
    arguments, max_length = training_arguments(task, training, facts, run_dir=run_dir, collator=collator)
    if options.output is None:
        arguments.save_strategy = "no"
    lora = LoraOptions() if lora is None else lora
    structure = describe(shapes, pruning.dimensions, pruning.keep_layers)
    _settle_router_loss_(arguments, structure)
    pruning = _check_ratio(pruning, structure, config, options)
    pruning = replace(pruning, seed=arguments.seed)
    _check_optimizer(pruning, arguments)
    _check_criterion(pruning)
    stored_dtype = checkpoint_dtype(config) if loaded is None else loaded.dtype
    check_space(structure, stored_dtype, subject.device, pruning, arguments, options)
    tokenizer = _find_tokenizer(tokenizer, subject, options)
    image_processor = task.find_image_processor(image_processor, subject.origin, options)
    setup = Setup(
        config=config,
        model=shapes,
        dtype=working_dtype(stored_dtype, subject.device) if loaded is None else loaded.dtype,
        processor=image_processor if tokenizer is None else tokenizer,
        max_length=max_length,
        collator=collator,
        options=options,
    )
    rows = split_rows(task, dataset, setup, arguments.seed)
    if tokenizer is not None:
        check_token_ids(rows.prepared.dataset, len(tokenizer), config)
    if isinstance(lora, LoraOptions):
        lora = lora_config(lora, structure, shapes, task, every_group=pruning.criterion == "lora")
    if checkpoint is not None:
        check_same_adapter(checkpoint, lora, subject.name)
    return Job(
        name=subject.name,
        task=task,
        model=loaded,
        config=config,
        tokenizer=tokenizer,
        image_processor=image_processor,
        pruning=pruning,
        arguments=arguments,
        context=context,
        max_length=max_length,
        lora=lora,
        rows=rows,
        structure=structure,
        stored_dtype=stored_dtype,
        device=subject.device,
        options=options,
        checkpoint=checkpoint,
    )


def _find_task(loaded: PreTrainedModel | None, config: PretrainedConfig, options: RunOptions) -> Task:
    """The task of the model, once it is sure that what was asked for goes with it."""
    auto_class = spec_for(config).auto_class
    task = task_of_config(config, auto_class) if loaded is None else task_of_model(loaded, auto_class)
    task.check_model(config)
    if options.prompt and not task.writes_text:
        raise ValueError(f"A prompt was given, and a model for {task.name} writes no text. Leave the prompt out.")
    return task


def _settle_router_loss_(arguments: Any, structure: Structure) -> None:
    """Switch a router's load-balancing loss off where whole experts go: it counts on the experts of the config.

    Raises:
        ValueError: the user asked for that loss.
    """
    if "experts" not in structure.kinds or not hasattr(arguments, "router_aux_loss_coef"):
        return
    if arguments.router_aux_loss_coef:
        raise ValueError(
            f"--router-aux-loss-coef is {arguments.router_aux_loss_coef:g}, and whole experts are pruned: the loss "
            "that balances the load of experts cannot follow that. Leave it out, or prune expert_channels instead."
        )
    arguments.router_aux_loss_coef = 0.0


def _check_optimizer(pruning: PruningConfig, arguments: TrainingArguments) -> None:
    """Make sure that the optimizer's state can shrink with the weights."""
    if pruning.ratio > 0.0 and arguments.optim not in SLICEABLE_OPTIMIZERS:
        raise ValueError(
            f"--optim {getattr(arguments.optim, 'value', arguments.optim)!s} keeps a state that cannot be cut with "
            f"the weights. Use one of {', '.join(SLICEABLE_OPTIMIZERS)}."
        )


def _check_criterion(pruning: PruningConfig) -> None:
    """Make sure that the options of a criterion go with the one that was chosen."""
    if pruning.lora_form != "squared" and pruning.criterion != "lora":
        raise ValueError(
            f"lora_form is an option of the criterion 'lora', and the criterion is {pruning.criterion!r}. Leave it out."
        )


def _find_tokenizer(
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


def _check_ratio(
    pruning: PruningConfig, structure: Structure, config: PretrainedConfig, options: RunOptions
) -> PruningConfig:
    """Turn a parameter target into a ratio, and make sure that the ratio can be met."""
    if options.target_params is not None:
        pruning = replace(pruning, ratio=ratio_for_parameters(structure, options.target_params))
    if pruning.any_head_count:
        check_relaxed_class(structure, config)
    if pruning.ratio > 0.0:
        legal = legal_widths(
            structure, channel_multiple=pruning.channel_multiple, any_head_count=pruning.free_head_counts
        )
        check_reachable(structure, pruning.ratio, legal, pruning.allocation)
    return pruning
