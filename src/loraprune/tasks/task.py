"""What a model is tuned to do: the one place where kinds of model differ for a run."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from loraprune.checkpoint.source import ModelSource
from loraprune.metrics.perplexity import Collator, HeldOut, HeldOutRows
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
    """What rows are prepared with.

    Attributes:
        source: of the model.
        dtype: in which the model is trained.
        processor: tokenizer, or image processor where there is one.
        max_length: tokens in a row at most; None where rows are no text.
        collator: the user's own, or None.
        options: of the run.
        prompt: text put before every row, or None.
    """

    source: ModelSource
    dtype: torch.dtype
    processor: Any
    max_length: int | None
    collator: Collator | None
    options: RunOptions
    prompt: str | None = None


@dataclass(frozen=True, kw_only=True)
class Workload:
    """What the latency of a model is measured with.

    Attributes:
        inputs: makes the arguments of a call of a model on a device.
        facts: about it, for the record.
    """

    inputs: Callable[[PreTrainedModel, torch.device], Mapping[str, Any]]
    facts: Mapping[str, Any]


class Task(ABC):
    """A kind of model together with the data, the Trainer and the measures that go with it.

    Attributes:
        name: as the record calls it.
        auto_class: class of transformers that loads such a model.
        adapter_type: peft's name of the task, or None where peft has none.
        row_name: what a held-out row is called, in the plural.
        measures: in the order in which they are shown.
        eval_rows: held-out rows that are measured at most, unless the user says otherwise.
        has_tokenizer: whether rows are text.
        writes_text: whether the model can go on from a prompt.
        trains_head: whether the layers behind the blocks are trained too.
    """

    name: ClassVar[str]
    auto_class: ClassVar[str]
    adapter_type: ClassVar[str | None] = None
    row_name: ClassVar[str]
    measures: ClassVar[tuple[Measure, ...]]
    eval_rows: ClassVar[int] = 64
    has_tokenizer: ClassVar[bool] = True
    writes_text: ClassVar[bool] = False
    trains_head: ClassVar[bool] = False

    def arguments_class(self) -> type[TrainingArguments]:
        """Class of the training arguments."""
        from transformers import TrainingArguments

        return TrainingArguments

    def defaults(self, own_collator: Collator | None) -> dict[str, Any]:
        """Training arguments that this task sets unless the user does."""
        return {"label_names": ["labels"], "remove_unused_columns": own_collator is None}

    def check_model(self, config: PretrainedConfig) -> None:  # noqa: B027 (most tasks take every model)
        """Refuse a model of the right class that is set up for something else.

        Raises:
            ValueError: the message says what the model would have to be.
        """

    def find_image_processor(self, given: Any, source: ModelSource) -> Any:
        """The image processor of a model that has one.

        Args:
            given: by the user: an object, a checkpoint's name, or None.
            source: of the model.

        Raises:
            ValueError: one was given to a model that reads no images.
        """
        if given is not None:
            raise ValueError(
                f"An image processor was given, but a model for {self.name} reads no images. Leave it out."
            )

    @abstractmethod
    def prepare(self, rows: Dataset, setup: Setup) -> PreparedRows:
        """Make rows to train on (or to measure on) of a data set.

        Raises:
            ValueError: the data does not fit the task or the model.
        """

    @abstractmethod
    def collator(self, prepared: PreparedRows, setup: Setup) -> Collator | None:
        """What makes batches of the rows; None leaves that to the Trainer."""

    def held_out(self, rows: Dataset, collator: Collator | None) -> HeldOut | HeldOutRows:
        """Prepared rows in the form in which they are measured on."""
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
        """The Trainer of a run, with the adapter on the model.

        Args:
            model: to tune; the adapter is put on it.
            rows: to train on, as :meth:`prepare` made them.
            arguments: of the Trainer.
            lora: of the adapter.
            processor: tokenizer or image processor.
            collator: makes batches; None leaves that to the Trainer.
            callbacks: of the Trainer.
            teacher: that a causal language model follows; None of other tasks.
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
        """Measures of a model on held-out rows, by the keys of :attr:`measures`."""

    @abstractmethod
    def workload(self, rows: Dataset, *, context: int | None, collator: Collator | None) -> Workload:
        """What latency is measured with.

        Args:
            rows: to take an example from, where random input would not do.
            context: tokens that the model can read at most, or None.
            collator: makes batches of the rows.
        """


def put_adapter(model: PreTrainedModel, lora: LoraConfig, seed: int) -> Any:
    """Put the adapter on a model, its random factors drawn from ``seed``."""
    from peft import get_peft_model
    from transformers import set_seed

    # The Trainer itself sets the seed only afterwards.
    set_seed(seed)
    return get_peft_model(model, lora)


def random_tokens(model: PreTrainedModel, count: int, device: torch.device) -> torch.Tensor:
    """Token ids of one sequence."""
    return torch.randint(model.config.vocab_size, (1, count), device=device)


# The measures of a task: which number of a run's metrics each is, and how reports and model cards call it.


def _nothing(measures: ModelMeasures) -> str:
    return ""


@dataclass(frozen=True, kw_only=True)
class Measure:
    """One measure.

    Attributes:
        key: the field of :class:`~loraprune.record.run_record.ModelMeasures` that it is.
        label: what the report calls it.
        unit: decides how it is written.
        detail: how it was measured, from the measures of the pruned model.
        card: what the model card calls it, from the same; None leaves it out there.
    """

    key: str
    label: str
    unit: Unit
    detail: Callable[[ModelMeasures], str] = _nothing
    card: Callable[[ModelMeasures], str] | None = None

    @property
    def of_quality(self) -> bool:
        """Whether it is measured on held-out rows, and not the size or the speed of the model."""
        return self.unit in (Unit.PERPLEXITY, Unit.ACCURACY)

    def of(self, measures: ModelMeasures) -> Any:
        """The number of a model; None where it was not measured."""
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
"""How a model card writes numbers of a unit."""


def classifier_measures(what: str) -> tuple[Measure, ...]:
    """Measures of a classifier of ``what`` (images, texts)."""

    def held_out(measures: ModelMeasures) -> str:
        return f"{measures.num_examples or 0:,} held-out {what}"

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
