"""Runs that were checked and can begin: what the steps of every recipe need to know of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from loraprune.checkpoint.load import DTYPES, working_dtype
from loraprune.checkpoint.source import ModelSource
from loraprune.measure.width_times import SpeedGoal
from loraprune.metrics.perplexity import Collator, HeldOut, HeldOutRows
from loraprune.pruning.config import PruningConfig
from loraprune.pruning.oneshot_config import OneshotConfig, SparseConfig
from loraprune.recipes.steps.teacher import TeacherSource
from loraprune.record.history import base_pruning, base_pruning_of
from loraprune.record.run_record import History
from loraprune.structure.dimensions import Structure
from loraprune.tasks.distillation import Teacher
from loraprune.tasks.options import LoraOptions, RunOptions
from loraprune.tasks.registry import tunable_task
from loraprune.tasks.rows import SplitRows, check_token_ids
from loraprune.tasks.task import Setup, Task

if TYPE_CHECKING:
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import (
        PreTrainedModel,
        PreTrainedTokenizerBase,
        Trainer,
        TrainerCallback,
        TrainingArguments,
    )


@dataclass(frozen=True, kw_only=True)
class RunInputs:
    """What a run is given beside the model, the data and what to prune.

    Attributes:
        training: training arguments by name, or an object of them.
        lora: our options or peft's configuration.
        tokenizer: of the model, or the name of a checkpoint that has one; None loads the model's own.
        options: of the run.
        image_processor: of an image classifier, likewise.
        collator: makes batches of rows in place of the task's own.
    """

    training: Mapping[str, Any] | TrainingArguments | None = None
    lora: LoraConfig | LoraOptions | None = None
    tokenizer: PreTrainedTokenizerBase | str | Path | None = None
    options: RunOptions = field(default_factory=RunOptions)
    image_processor: Any = None
    collator: Collator | None = None


def find_source(model: str | Path | PreTrainedModel, inputs: RunInputs) -> tuple[ModelSource, Task]:
    """Read a checkpoint's config, or that of a model, and find out what it is tuned for.

    Raises:
        ValueError: it cannot be tuned, or what was given does not go with it.
    """
    options, tokenizer = inputs.options, inputs.tokenizer
    source = ModelSource.of(
        model, tokenizer=tokenizer, trust_remote_code=options.trust_remote_code, revision=options.revision
    )
    task = tunable_task(source)
    source.check_trainable()
    if options.prompt and not task.writes_text:
        raise ValueError(f"A prompt was given, and a model for {task.name} writes no text. Leave the prompt out.")
    if options.bos != "auto" and task.name != "causal-lm":
        raise ValueError(
            f"--bos is for causal language models, and {source.name} is made for {task.name}. Leave it out."
        )
    if tokenizer is not None and not task.has_tokenizer:
        raise ValueError(f"A tokenizer was given, but a model for {task.name} reads no text. Leave it out.")
    return source, task


@dataclass(kw_only=True)
class PreparedRun:
    """A run that was checked and can begin.

    Attributes:
        source: of the model before pruning.
        task: that the model is made for.
        image_processor: of a model that reads images, where it has one.
        max_length: tokens in a row at most; None where rows are no text.
        rows: what to train on or to calibrate on, and what to measure on.
        device: that weights are kept on; ``computing``: that computes, and on which models are measured.
        goal: the speed that was asked for, if one was.
    """

    source: ModelSource
    task: Task
    image_processor: Any
    max_length: int | None
    structure: Structure
    device: torch.device
    computing: torch.device
    options: RunOptions
    goal: SpeedGoal | None = None
    rows: SplitRows = field(init=False)

    @property
    def name(self) -> str:
        """Of the checkpoint, for the record."""
        return self.source.name

    @property
    def called(self) -> tuple[str, str]:
        """What messages call the model before and after the run."""
        return "dense", "pruned"

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase | None:
        """Of a model that reads text, else None."""
        return self.source.tokenizer if self.task.has_tokenizer else None

    @property
    def saved_dtype(self) -> torch.dtype:
        """The dtype of the result: the one asked for, else that of the checkpoint or of a model in memory."""
        return self.source.stored_dtype if self.options.dtype is None else DTYPES[self.options.dtype]

    @property
    def computed_dtype(self) -> torch.dtype:
        """The dtype to work in: that of a model in memory, else the result's, or a wider one if the device needs it."""
        loaded = self.source.loaded
        return working_dtype(self.saved_dtype, self.computing) if loaded is None else loaded.dtype

    @property
    def processor(self) -> Any:
        """What turns raw rows into the model's input: tokenizer or image processor."""
        return self.image_processor if self.tokenizer is None else self.tokenizer

    @property
    def train_rows(self) -> Dataset:
        """Rows to train on or to calibrate on."""
        return self.rows.train

    @property
    def held_out(self) -> HeldOut | HeldOutRows | None:
        """Rows to measure on, or None."""
        return self.rows.held_out

    @property
    def collator(self) -> Collator | None:
        """Makes batches; None leaves that to the Trainer."""
        return self.rows.collator

    def setup(self, collator: Collator | None, prompt: str | None = None) -> Setup:
        """What rows are prepared with."""
        return Setup(
            source=self.source,
            dtype=self.computed_dtype,
            processor=self.processor,
            max_length=self.max_length,
            collator=collator,
            options=self.options,
            prompt=prompt,
        )

    def take_rows_(self, rows: SplitRows) -> None:
        """Take rows in, once it is sure that the model knows their tokens.

        Raises:
            ValueError: it does not.
        """
        if self.tokenizer is not None and len(rows.prepared.dataset):
            check_token_ids(rows.prepared.dataset, len(self.tokenizer), self.source.config)
        self.rows = rows

    def history(self) -> History | None:
        """The short history of the checkpoint that the run begins with; None where there is none."""
        source = self.source
        return base_pruning(source.name, source.revision) if source.loaded is None else base_pruning_of(source.loaded)

    def origins(self) -> dict[str, str | None]:
        """What the card tells of the hub: the data set that the run read, and the revision of the model."""
        return {"data": self.rows.hub_data, "revision": self.source.revision}

    def load_model(self) -> PreTrainedModel:
        """The model: the user's own, or the checkpoint's on the run's device, in the dtype to work in."""
        return self.source.load(
            self.computed_dtype, self.device, quantization=self.options.quantization, sharded=self.options.sharded
        )


@dataclass(kw_only=True)
class PreparedTraining(PreparedRun):
    """A run of the joint recipe, or one that tunes alone.

    Attributes:
        pruning: what to prune, and when.
        arguments: of the Trainer.
        lora: of the adapter.
        checkpoint: to resume from.
        recovery: whether the model is tuned and not pruned.
        keep_zeros: whether weights that are zero stay zero; None where the weights decide, once they are loaded.
        base_quantized: whether the base is quantized while it is tuned.
        given: training arguments by name, as the user gave them.
        lora_options: that the adapter was asked for by; None where it was given as peft's own configuration.
        teacher: that tuning follows, if any.
    """

    pruning: PruningConfig
    arguments: TrainingArguments
    lora: LoraConfig
    checkpoint: Path | None
    recovery: bool = False
    keep_zeros: bool | None = False
    base_quantized: bool = False
    given: Mapping[str, Any] = field(default_factory=dict)
    lora_options: LoraOptions | None = None
    teacher: TeacherSource | None = None

    @property
    def unstructured(self) -> bool:
        """Whether single weights become zero and nothing is cut."""
        return self.pruning.unstructured

    @property
    def called(self) -> tuple[str, str]:
        """What messages call the model before and after the run."""
        return ("base", "recovered") if self.recovery else super().called

    def load_teacher(self, model: PreTrainedModel) -> Teacher | None:
        """What tuning follows, if anything; the model is that of the run, as it is before the first cut."""
        return None if self.teacher is None else self.teacher.load(self.computed_dtype, self.device, model)

    def trainer(
        self, model: PreTrainedModel, callbacks: Sequence[TrainerCallback], teacher: Teacher | None = None
    ) -> Trainer:
        """The task's own Trainer, with the adapter on the model."""
        return self.task.trainer(
            model,
            self.train_rows,
            arguments=self.arguments,
            lora=self.lora,
            processor=self.processor,
            collator=self.collator,
            callbacks=callbacks,
            teacher=teacher,
        )


@dataclass(kw_only=True)
class PreparedOneshot(PreparedRun):
    """A run without training.

    Attributes:
        oneshot: what to prune, and how.
    """

    oneshot: OneshotConfig | SparseConfig

    @property
    def structured(self) -> bool:
        """Whether groups go; otherwise weights become zero."""
        return isinstance(self.oneshot, OneshotConfig)

    def settings(self) -> dict[str, Any]:
        """What was in force, for the record: with the length that follows from the model."""
        return self.oneshot.settings() | {"max_length": self.max_length}
