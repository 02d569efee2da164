"""A run that was checked and can begin: what every recipe needs to know of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from loraprune.checkpoint.load import load_model, working_dtype
from loraprune.metrics.perplexity import Collator, HeldOut, HeldOutRows
from loraprune.structure.dimensions import Structure
from loraprune.tasks.options import RunOptions
from loraprune.tasks.rows import SplitRows
from loraprune.tasks.task import Task

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


@dataclass(kw_only=True)
class Job:
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
        stored_dtype: dtype of the checkpoint, and of the result.
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

    def load_model(self) -> PreTrainedModel:
        """The checkpoint's model, on the job's device and in the dtype to work in."""
        return load_model(
            self.name,
            working_dtype(self.stored_dtype, self.computing),
            self.device,
            auto_class=self.task.auto_class,
            trust_remote_code=self.options.trust_remote_code,
            revision=self.options.revision,
            quantization=self.options.quantization,
        )
