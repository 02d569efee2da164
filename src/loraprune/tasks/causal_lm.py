"""Causal language models: tuned by trl's SFTTrainer, measured by perplexity."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch

from loraprune.checkpoint.load import give_pad_token_
from loraprune.metrics.perplexity import Collator, HeldOut, HeldOutRows, perplexity
from loraprune.processes.sharding import is_sharded
from loraprune.record.report_data import Unit
from loraprune.record.run_record import ModelMeasures
from loraprune.tasks.distillation import Teacher, distilling
from loraprune.tasks.task import (
    FILE_SIZE,
    LATENCY_TOKENS,
    PARAMETERS,
    Measure,
    Setup,
    Task,
    Workload,
    random_tokens,
)

if TYPE_CHECKING:
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainingArguments

    from loraprune.data.formats import PreparedRows


def _held_out(measures: ModelMeasures) -> str:
    return f"{measures.segment_length}-token segments, {measures.num_tokens or 0:,} held-out tokens"


def _timed_call(measures: ModelMeasures) -> str:
    return measures.latency_input or f"1 × {measures.latency_tokens} tokens"


class CausalLM(Task):
    """Continue a text."""

    name = "causal-lm"
    auto_class = "AutoModelForCausalLM"
    adapter_type = "CAUSAL_LM"
    writes_text = True
    reads_streams = True
    row_name = "sequence"
    measures = (
        PARAMETERS,
        FILE_SIZE,
        Measure(
            key="perplexity",
            label="Held-out perplexity",
            unit=Unit.PERPLEXITY,
            detail=_held_out,
            card=lambda measures: f"held-out perplexity ({measures.segment_length}-token segments)",
        ),
        Measure(key="bits_per_byte", label="Bits per byte", unit=Unit.BITS_PER_BYTE, detail=_held_out),
        Measure(
            key="latency_ms",
            label="Forward pass",
            unit=Unit.MILLISECONDS,
            detail=lambda measures: f"{_timed_call(measures)}, median, taking turns",
            card=lambda measures: f"forward pass, {measures.latency_input or f'{measures.latency_tokens} tokens'} (ms)",
        ),
    )

    def arguments_class(self) -> type[TrainingArguments]:
        """Trl's arguments class, which has the options of language models."""
        from trl import SFTConfig

        arguments: type[TrainingArguments] = SFTConfig
        return arguments

    def defaults(self, own_collator: Collator | None) -> dict[str, Any]:
        """None: trl's defaults are right."""
        return {}

    def prepare(self, rows: Dataset, setup: Setup) -> PreparedRows:
        """Tokenize. Plain text is packed; for all other data, the answers are trained."""
        assert setup.max_length is not None
        from loraprune.data.formats import prepare_dataset  # imported late: datasets takes a second to import

        return prepare_dataset(
            rows,
            setup.processor,
            max_length=setup.max_length,
            answers_only=setup.options.answers_only,
            prompt=setup.prompt,
            bos=setup.options.bos,
            most_rows=setup.most_rows,
        )

    def collator(self, prepared: PreparedRows, setup: Setup) -> Collator | None:
        """The user's own collator, or trl's."""
        return setup.collator

    def held_out(self, rows: Dataset, collator: Collator | None) -> HeldOut:
        """Sequences with their labels. Nothing is padded, so no collator is needed."""
        sequences = []
        for row in rows:
            ids = torch.tensor(row["input_ids"])
            sequences.append((ids, torch.tensor(row["labels"]) if "labels" in row else ids))
        return HeldOut(sequences=sequences)

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
        """Trl's SFTTrainer on tokenized rows. If there is a teacher, the loss follows it."""
        from transformers import set_seed
        from trl import SFTTrainer

        # Before version 1.15, trl initializes the adapter before it sets the seed.
        set_seed(arguments.seed)
        tokenizer = copy.deepcopy(processor)
        give_pad_token_(tokenizer)
        trainer_class: Any = SFTTrainer if teacher is None else distilling(SFTTrainer, teacher)
        return trainer_class(
            model=model,
            args=arguments,
            train_dataset=rows,
            data_collator=collator,
            processing_class=tokenizer,
            peft_config=lora,
            callbacks=list(callbacks),
        )

    def quality(self, model: PreTrainedModel, held_out: HeldOut | HeldOutRows, processor: Any) -> dict[str, Any]:
        """Perplexity, and the data it was measured on."""
        assert isinstance(held_out, HeldOut)
        found = asdict(perplexity(model, held_out, shared=not is_sharded(model)))
        return {key: value for key, value in found.items() if value is not None}

    def workload(self, rows: Dataset, *, context: int | None, collator: Collator | None) -> Workload:
        """One sequence."""
        tokens = min(LATENCY_TOKENS, context or LATENCY_TOKENS)
        return Workload(
            inputs=lambda model, device: {"input_ids": random_tokens(model, tokens, device), "use_cache": False},
            facts={"latency_tokens": tokens},
        )
