"""The task of a model: the one place for what differs between kinds of model in a run."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from loraprune.checkpoint.source import ModelSource
from loraprune.metrics.perplexity import Collator, HeldOut, HeldOutRows
from loraprune.record.numbers import counted
from loraprune.record.report_data import Unit
from loraprune.record.run_record import ModelMeasures
from loraprune.tasks.distillation import Teacher
from loraprune.tasks.options import RunOptions

if TYPE_CHECKING:
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import PretrainedConfig, PreTrainedModel, Trainer, TrainerCallback, TrainingArguments

    from loraprune.data.formats import PreparedRows

LATENCY_TOKENS = 512


@dataclass(frozen=True, kw_only=True)
class Setup:
    """Settings for the preparation of rows.

    Attributes:
        source: source of the model.
        dtype: dtype of the model in training.
        processor: the tokenizer, or the image processor if there is one.
        max_length: maximum number of tokens per row; None if rows are not text.
        collator: the user's own, or None.
        options: options of the run.
        prompt: text put before every row, or None.
        most_rows: maximum number of prepared rows; None takes all.
    """

    source: ModelSource
    dtype: torch.dtype
    processor: Any
    max_length: int | None
    collator: Collator | None
    options: RunOptions
    prompt: str | None = None
    most_rows: int | None = None


@dataclass(frozen=True, kw_only=True)
class Workload:
    """Input for measuring the latency of a model.

    Attributes:
        inputs: returns the arguments of a call of a model on a device.
        facts: description of the input, for the record.
    """

    inputs: Callable[[PreTrainedModel, torch.device], Mapping[str, Any]]
    facts: Mapping[str, Any]


class Task(ABC):
    """A kind of model with its data format, Trainer and measures.

    Attributes:
        name: name in the record.
        auto_class: class of transformers that loads such a model.
        adapter_type: peft's name of the task, or None if peft has none.
        row_name: name of a row, in the singular.
        measures: measures in display order.
        eval_rows: default maximum of held-out rows to measure.
        has_tokenizer: whether rows are text.
        writes_text: whether the model can continue a prompt.
        reads_streams: whether rows are prepared while they are read; if not, a stream's first rows are read first.
        trains_head: whether the layers after the blocks are trained too.
    """

    name: ClassVar[str]
    auto_class: ClassVar[str]
    adapter_type: ClassVar[str | None] = None
    row_name: ClassVar[str]
    measures: ClassVar[tuple[Measure, ...]]
    eval_rows: ClassVar[int] = 64
    has_tokenizer: ClassVar[bool] = True
    writes_text: ClassVar[bool] = False
    reads_streams: ClassVar[bool] = False
    trains_head: ClassVar[bool] = False

    def arguments_class(self) -> type[TrainingArguments]:
        """Class of the training arguments."""
        from transformers import TrainingArguments

        return TrainingArguments

    def defaults(self, own_collator: Collator | None) -> dict[str, Any]:
        """Training arguments that this task sets unless the user does."""
        return {"label_names": ["labels"], "remove_unused_columns": own_collator is None}

    def check_model(self, config: PretrainedConfig) -> None:  # noqa: B027 (most tasks take every model)
        """Reject a model of the right class that is set up for something else.

        Raises:
            ValueError: the message says what the model would have to be.
        """

    def find_image_processor(self, given: Any, source: ModelSource) -> Any:
        """Return the image processor of a model that has one.

        Args:
            given: by the user: an object, a checkpoint's name, or None.
            source: source of the model.

        Raises:
            ValueError: the model reads no images, but an image processor was given.
        """
        if given is not None:
            raise ValueError(
                f"You passed an image processor, and a model for {self.name} reads no images. Leave it out."
            )

    @abstractmethod
    def prepare(self, rows: Dataset, setup: Setup) -> PreparedRows:
        """Convert a dataset to rows to train or measure on.

        Raises:
            ValueError: the data does not fit the task or the model.
        """

    @abstractmethod
    def collator(self, prepared: PreparedRows, setup: Setup) -> Collator | None:
        """Return the collator of the rows; None uses the Trainer's own."""

    def held_out(self, rows: Dataset, collator: Collator | None) -> HeldOut | HeldOutRows:
        """Convert prepared rows to the form for measuring."""
        assert collator is not None
        return HeldOutRows(rows=rows, collator=collator)

    def trainer_class(self) -> type[Trainer]:
        """Class of the Trainer."""
        from transformers import Trainer

        return Trainer

    def trainer(
        self,
        model: PreTrainedModel,
        rows: Dataset,
        *,
        arguments: TrainingArguments,
        lora: LoraConfig,
        processor: Any,
        collator: Collator | None,
        callbacks: Sequence[TrainerCallback],
        teacher: Teacher | None = None,
    ) -> Trainer:
        """Return the Trainer of a run, with the adapter on the model.

        Args:
            model: model to tune; the adapter is added to it.
            rows: training rows from :meth:`prepare`.
            arguments: arguments of the Trainer.
            lora: configuration of the adapter.
            processor: tokenizer or image processor.
            collator: makes batches; None uses the Trainer's own.
            callbacks: callbacks of the Trainer.
            teacher: teacher of a causal language model; None for other tasks.
        """
        return self.trainer_class()(
            model=put_adapter(model, lora, arguments.seed),
            args=arguments,
            train_dataset=rows,
            data_collator=collator,
            processing_class=processor,
            callbacks=list(callbacks),
        )

    @abstractmethod
    def quality(self, model: PreTrainedModel, held_out: HeldOut | HeldOutRows, processor: Any) -> dict[str, Any]:
        """Measure a model on held-out rows; the keys are those of :attr:`measures`."""

    @abstractmethod
    def workload(self, rows: Dataset, *, context: int | None, collator: Collator | None) -> Workload:
        """Return the input for measuring latency.

        Args:
            rows: rows to take an example from, if random input is not suitable.
            context: maximum number of tokens that the model can read, or None.
            collator: makes batches of the rows.
        """


def put_adapter(model: PreTrainedModel, lora: LoraConfig, seed: int) -> Any:
    """Add the adapter to a model. ``seed`` determines its random factors."""
    from peft import get_peft_model
    from transformers import set_seed

    # The Trainer sets the seed only later.
    set_seed(seed)
    return get_peft_model(model, lora)


def random_tokens(model: PreTrainedModel, count: int, device: torch.device) -> torch.Tensor:
    """Random token ids of one sequence."""
    return torch.randint(model.config.vocab_size, (1, count), device=device)


# The measures of a task: the metric in the record, and its names in reports and model cards.


def _nothing(measures: ModelMeasures) -> str:
    return ""


@dataclass(frozen=True, kw_only=True)
class Measure:
    """One measure.

    Attributes:
        key: its field in :class:`~loraprune.record.run_record.ModelMeasures`.
        label: name in the report.
        unit: decides the format.
        detail: returns the conditions, from the measures of the pruned model.
        card: returns the name in the model card, from the same measures; None leaves it out of the card.
    """

    key: str
    label: str
    unit: Unit
    detail: Callable[[ModelMeasures], str] = _nothing
    card: Callable[[ModelMeasures], str] | None = None

    @property
    def of_quality(self) -> bool:
        """Whether it is measured on held-out rows, unlike the size or the speed of the model."""
        return self.unit in (Unit.PERPLEXITY, Unit.ACCURACY)

    def of(self, measures: ModelMeasures) -> Any:
        """Return the value for a model, or None if it was not measured."""
        return getattr(measures, self.key)


PARAMETERS = Measure(key="parameters", label="Parameters", unit=Unit.PARAMETERS, card=lambda _: "parameters")
NONZERO = Measure(
    key="nonzero", label="Weights that are not zero", unit=Unit.PARAMETERS, card=lambda _: "weights that are not zero"
)
FILE_SIZE = Measure(key="bytes", label="File size", unit=Unit.BYTES, detail=lambda _: "weights in safetensors")
FORWARD_PASS = Measure(
    key="latency_ms",
    label="Forward pass",
    unit=Unit.MILLISECONDS,
    detail=lambda measures: f"{measures.latency_input}, median, taking turns",
    card=lambda measures: f"forward pass, {measures.latency_input} (ms)",
)
CARD_FORMATS = {
    Unit.PARAMETERS: ",d",
    Unit.PERPLEXITY: ".2f",
    Unit.ACCURACY: ".2%",
    Unit.LOSS: ".3f",
    Unit.MILLISECONDS: ".1f",
}
"""Number formats of a model card, by unit."""


def classifier_measures(what: str) -> tuple[Measure, ...]:
    """Return the measures of a classifier of ``what`` (``image``, ``text``)."""

    def held_out(measures: ModelMeasures) -> str:
        return counted(measures.num_examples or 0, f"held-out {what}")

    return (
        PARAMETERS,
        FILE_SIZE,
        Measure(
            key="accuracy",
            label="Accuracy",
            unit=Unit.ACCURACY,
            detail=held_out,
            card=lambda measures: f"accuracy ({held_out(measures)})",
        ),
        Measure(key="loss", label="Loss", unit=Unit.LOSS, detail=lambda measures: f"nats, {held_out(measures)}"),
        FORWARD_PASS,
    )
