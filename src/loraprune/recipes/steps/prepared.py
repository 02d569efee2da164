"""Runs that were checked and can begin: what the steps of every recipe need to know of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from loraprune.checkpoint.load import DTYPES, checkpoint_dtype, load_model, working_dtype
from loraprune.metrics.perplexity import Collator, HeldOut, HeldOutRows
from loraprune.pruning.config import PruningConfig
from loraprune.pruning.oneshot_config import OneshotConfig
from loraprune.record.history import base_pruning, base_pruning_of
from loraprune.structure.dimensions import Structure
from loraprune.structure.widths import LegalWidths, legal_widths
from loraprune.tasks.lora import LoraOptions
from loraprune.tasks.options import RunOptions
from loraprune.tasks.rows import SplitRows
from loraprune.tasks.task import Task

if TYPE_CHECKING:
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import (
        PretrainedConfig,
        PreTrainedModel,
        PreTrainedTokenizerBase,
        Trainer,
        TrainerCallback,
        TrainingArguments,
    )


def saved_dtype(options: RunOptions, config: PretrainedConfig, loaded: PreTrainedModel | None) -> torch.dtype:
    """The dtype of the result: the one asked for, else that of the checkpoint or of a loaded model."""
    if options.dtype is not None:
        return DTYPES[options.dtype]
    return checkpoint_dtype(config) if loaded is None else loaded.dtype


@dataclass(kw_only=True)
class PreparedRun:
    """A run that was checked and can begin.

    Attributes:
        name: of the checkpoint, for the record.
        task: that the model is made for.
        model: given by the user, or None: it is loaded from ``name``.
        config: of the model before pruning.
        tokenizer: of a model that reads text, else None; ``image_processor``: likewise.
        context: tokens that the model can read at most, or None.
        max_length: tokens in a row at most; None where rows are no text.
        rows: what to train on or to calibrate on, and what to measure on.
        stored_dtype: dtype of the result; the checkpoint's own, unless another one was asked for.
        device: that weights are kept on; ``computing``: that computes, and on which models are measured.
    """

    name: str
    task: Task
    model: PreTrainedModel | None
    config: PretrainedConfig
    tokenizer: PreTrainedTokenizerBase | None
    image_processor: Any
    context: int | None
    max_length: int | None
    rows: SplitRows
    structure: Structure
    stored_dtype: torch.dtype
    device: torch.device
    computing: torch.device
    options: RunOptions

    @property
    def called(self) -> tuple[str, str]:
        """What messages call the model before and after the run."""
        return "dense", "pruned"

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

    def history(self) -> dict[str, Any] | None:
        """The short history of the checkpoint that the run begins with; None where there is none."""
        return base_pruning(self.name, self.options.revision) if self.model is None else base_pruning_of(self.model)

    def load_model(self) -> PreTrainedModel:
        """The checkpoint's model, on the run's device and in the dtype to work in."""
        return load_model(
            self.name,
            working_dtype(self.stored_dtype, self.computing),
            self.device,
            auto_class=self.task.auto_class,
            trust_remote_code=self.options.trust_remote_code,
            revision=self.options.revision,
            quantization=self.options.quantization,
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

    @property
    def unstructured(self) -> bool:
        """Whether single weights become zero and nothing is cut."""
        return self.pruning.unstructured

    @property
    def called(self) -> tuple[str, str]:
        """What messages call the model before and after the run."""
        return ("base", "recovered") if self.recovery else super().called

    def trainer(self, model: PreTrainedModel, callbacks: Sequence[TrainerCallback]) -> Trainer:
        """The task's own Trainer, with the adapter on the model."""
        return self.task.trainer(
            model,
            self.train_rows,
            arguments=self.arguments,
            lora=self.lora,
            processor=self.processor,
            collator=self.collator,
            callbacks=callbacks,
        )


@dataclass(kw_only=True)
class PreparedOneshot(PreparedRun):
    """A run without training.

    Attributes:
        oneshot: what to prune, and how.
        ratio: share of the prunable parameters that goes; 0 where weights become zero.
    """

    oneshot: OneshotConfig
    ratio: float

    def legal_widths(self) -> LegalWidths:
        """Widths that the result may have."""
        return legal_widths_for(self.structure, self.oneshot)

    def settings(self) -> dict[str, Any]:
        """What was in force, for the record: with the length and the ratio that follow from model and target."""
        follows = {"max_length": self.max_length} | ({"ratio": self.ratio} if self.oneshot.structured else {})
        return self.oneshot.settings() | follows


def legal_widths_for(structure: Structure, oneshot: OneshotConfig) -> LegalWidths:
    """Widths that the result of a run without training may have."""
    return legal_widths(
        structure,
        channel_multiple=oneshot.channel_multiple,
        head_counts="any" if oneshot.value("allocation") == "global" else oneshot.value("head_counts"),
    )
