"""Checked runs: the data that the steps of every recipe need."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from loraprune.checkpoint.load import DTYPES, working_dtype
from loraprune.checkpoint.names import as_typed
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
    """Inputs of a run besides the model, the data and the pruning configuration.

    Attributes:
        training: training arguments by name, or an object.
        lora: our options or peft's configuration.
        tokenizer: tokenizer of the model, or the name of a checkpoint that has one; None loads the model's own.
        options: options of the run.
        image_processor: image processor of a classifier, or the name of a checkpoint that has one.
        collator: function that batches rows, instead of the task's own.
    """

    training: Mapping[str, Any] | TrainingArguments | None = None
    lora: LoraConfig | LoraOptions | None = None
    tokenizer: PreTrainedTokenizerBase | str | Path | None = None
    options: RunOptions = field(default_factory=RunOptions)
    image_processor: Any = None
    collator: Collator | None = None


def find_source(model: str | Path | PreTrainedModel, inputs: RunInputs) -> tuple[ModelSource, Task]:
    """Read the config of a checkpoint or model, and determine its task.

    Raises:
        ValueError: the model cannot be tuned, or an input does not fit its task.
    """
    options, tokenizer = inputs.options, inputs.tokenizer
    source = ModelSource.of(
        model, tokenizer=tokenizer, trust_remote_code=options.trust_remote_code, revision=options.revision
    )
    task = tunable_task(source)
    source.check_trainable()
    if options.prompt and not task.writes_text:
        raise ValueError(f"You passed a prompt, and a model for {task.name} writes no text. Leave the prompt out.")
    if options.bos != "auto" and task.name != "causal-lm":
        raise ValueError(
            f"--bos is for causal language models, and the task of {source.name} is {task.name}. Leave it out."
        )
    if tokenizer is not None and not task.has_tokenizer:
        raise ValueError(f"You passed a tokenizer, and a model for {task.name} reads no text. Leave it out.")
    return source, task


@dataclass(kw_only=True)
class PreparedRun:
    """A checked run.

    Attributes:
        source: source of the model before pruning.
        task: task of the model.
        image_processor: image processor of a model that reads images, or None.
        max_length: maximum number of tokens in a row; None if rows are not text.
        structure: structure of the model before pruning.
        device: device that holds the weights.
        computing: device that computes, and on which models are measured.
        options: options of the run.
        goal: speed goal, or None.
        rows: rows to train or calibrate on, and rows to measure on.
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
        """Name of the checkpoint, for the record."""
        return self.source.name

    @property
    def typed_name(self) -> str:
        """Name of the model as a user types it."""
        return as_typed(self.source.name)

    @property
    def called(self) -> tuple[str, str]:
        """Names of the model before and after the run in messages."""
        return "dense", "pruned"

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase | None:
        """Tokenizer of a model that reads text, else None."""
        return self.source.tokenizer if self.task.has_tokenizer else None

    @property
    def saved_dtype(self) -> torch.dtype:
        """Dtype of the result: the option ``dtype``, or else that of the checkpoint or the loaded model."""
        return self.source.stored_dtype if self.options.dtype is None else DTYPES[self.options.dtype]

    @property
    def computed_dtype(self) -> torch.dtype:
        """Dtype to work in: that of a loaded model, or else the result's, or a wider one if the device needs it."""
        loaded = self.source.loaded
        return working_dtype(self.saved_dtype, self.computing) if loaded is None else loaded.dtype

    @property
    def processor(self) -> Any:
        """Tokenizer or image processor."""
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
        """Collator of the rows; None uses the Trainer's own."""
        return self.rows.collator

    def setup(self, collator: Collator | None, prompt: str | None = None) -> Setup:
        """Return the settings for preparing rows."""
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
        """Set the rows, after checking that the model knows their tokens.

        Raises:
            ValueError: it does not.
        """
        if self.tokenizer is not None and len(rows.prepared.dataset):
            check_token_ids(rows.prepared.dataset, len(self.tokenizer), self.source.config)
        self.rows = rows

    def history(self) -> History | None:
        """Return the pruning history of the run's checkpoint, or None."""
        source = self.source
        return base_pruning(source.name, source.revision) if source.loaded is None else base_pruning_of(source.loaded)

    def origins(self) -> dict[str, str | None]:
        """Return the Hub dataset and the model's revision, for the card."""
        return {"data": self.rows.hub_data, "revision": self.source.revision}

    def load_model(self) -> PreTrainedModel:
        """Return the user's loaded model, or load the checkpoint's on the run's device in the dtype to work in."""
        return self.source.load(
            self.computed_dtype, self.device, quantization=self.options.quantization, sharded=self.options.sharded
        )


@dataclass(kw_only=True)
class PreparedTraining(PreparedRun):
    """A run of the joint recipe or of recovery.

    Attributes:
        pruning: pruning configuration.
        arguments: arguments of the Trainer.
        lora: configuration of the adapter.
        checkpoint: checkpoint to resume from, or None.
        recovery: whether the model is tuned but not pruned.
        keep_zeros: whether zero weights stay zero; None decides by the weights, after loading.
        base_quantized: whether the base is quantized during tuning.
        given: training arguments of the user, by name.
        lora_options: our options of the adapter; None if the user passed peft's configuration.
        teacher: source of the teacher, or None.
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
        """Whether single weights become zero and nothing is cut (PST)."""
        return self.pruning.unstructured

    @property
    def called(self) -> tuple[str, str]:
        """Names of the model before and after the run in messages."""
        return ("base", "recovered") if self.recovery else super().called

    def load_teacher(self, model: PreTrainedModel) -> Teacher | None:
        """Load the teacher, or return None; ``model`` is the run's model before the first cut."""
        return None if self.teacher is None else self.teacher.load(self.computed_dtype, self.device, model)

    def trainer(
        self, model: PreTrainedModel, callbacks: Sequence[TrainerCallback], teacher: Teacher | None = None
    ) -> Trainer:
        """Make the task's Trainer, with the adapter on the model."""
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
        oneshot: pruning configuration.
    """

    oneshot: OneshotConfig | SparseConfig

    @property
    def structured(self) -> bool:
        """Whether groups are removed; otherwise weights become zero."""
        return isinstance(self.oneshot, OneshotConfig)

    @property
    def norm_steps(self) -> int:
        """Number of optimizer steps on the norms, which the outlook counts; 0 if the run leaves them out."""
        if not isinstance(self.oneshot, OneshotConfig) or self.computing != self.device:
            return 0
        return (self.oneshot.norm_steps or 0) if self.task.name == "causal-lm" else 0

    def settings(self) -> dict[str, Any]:
        """Return all settings for the record, with the maximum length that follows from the model."""
        return self.oneshot.settings() | {"max_length": self.max_length}
