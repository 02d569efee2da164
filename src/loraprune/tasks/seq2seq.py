"""Encoder–decoder models: tuned by transformers' Seq2SeqTrainer, measured by perplexity and exact matches."""

from __future__ import annotations

import copy
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch

from loraprune.checkpoint.load import give_pad_token_
from loraprune.metrics.accuracy import target_quality
from loraprune.metrics.perplexity import Collator, HeldOut, HeldOutRows
from loraprune.record.report_data import Unit
from loraprune.record.run_record import ModelMeasures
from loraprune.tasks.task import (
    FILE_SIZE,
    FORWARD_PASS,
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
    from transformers import PreTrainedModel, Trainer, TrainingArguments

    from loraprune.data.formats import PreparedRows

LATENCY_TARGET_TOKENS = 64


def _tokens(measures: ModelMeasures) -> str:
    return f"{measures.num_tokens or 0:,} held-out target tokens"


def _written(measures: ModelMeasures) -> str:
    return f"{measures.num_generated or 0:,} held-out targets"


class TextToText(Task):
    """Write the target of a source."""

    name = "text-to-text"
    auto_class = "AutoModelForSeq2SeqLM"
    adapter_type = "SEQ_2_SEQ_LM"
    writes_text = True
    row_name = "pair"
    measures = (
        PARAMETERS,
        FILE_SIZE,
        Measure(
            key="perplexity",
            label="Held-out perplexity",
            unit=Unit.PERPLEXITY,
            detail=_tokens,
            card=lambda measures: f"held-out perplexity ({_tokens(measures)})",
        ),
        Measure(key="loss", label="Loss", unit=Unit.LOSS, detail=lambda measures: f"nats, {_tokens(measures)}"),
        Measure(
            key="exact_match",
            label="Exact match",
            unit=Unit.ACCURACY,
            detail=lambda measures: f"{_written(measures)}, greedy decoding",
            card=lambda measures: f"exact match ({_written(measures)})",
        ),
        FORWARD_PASS,
    )

    def arguments_class(self) -> type[TrainingArguments]:
        """Training arguments of the Seq2SeqTrainer."""
        from transformers import Seq2SeqTrainingArguments

        return Seq2SeqTrainingArguments

    def prepare(self, rows: Dataset, setup: Setup) -> PreparedRows:
        """Tokenize sources and targets."""
        assert setup.max_length is not None
        from loraprune.data.pairs import prepare_pairs  # imported late: datasets takes a second to import

        return prepare_pairs(rows, setup.processor, max_length=setup.max_length)

    def collator(self, prepared: PreparedRows, setup: Setup) -> Collator:
        """The user's own collator, or one that pads sources and targets; the model shifts the targets itself."""
        from transformers import DataCollatorForSeq2Seq

        if setup.collator is not None:
            return setup.collator
        tokenizer = copy.deepcopy(setup.processor)
        give_pad_token_(tokenizer)
        return DataCollatorForSeq2Seq(tokenizer)

    def trainer_class(self) -> type[Trainer]:
        """The Seq2SeqTrainer."""
        from transformers import Seq2SeqTrainer

        return Seq2SeqTrainer

    def quality(self, model: PreTrainedModel, held_out: HeldOut | HeldOutRows, processor: Any) -> dict[str, Any]:
        """Likelihood of the targets, and the number of targets that greedy decoding reproduces."""
        assert isinstance(held_out, HeldOutRows)
        return asdict(target_quality(model, held_out, processor, generated=len(held_out)))

    def workload(self, rows: Dataset, *, context: int | None, collator: Collator | None) -> Workload:
        """One source and a short target."""
        source = min(LATENCY_TOKENS, context or LATENCY_TOKENS)
        target = min(LATENCY_TARGET_TOKENS, source)

        def inputs(model: PreTrainedModel, device: torch.device) -> dict[str, Any]:
            ids = random_tokens(model, source, device)
            further = {"attention_mask": torch.ones_like(ids), "use_cache": False}
            return {"input_ids": ids, "decoder_input_ids": random_tokens(model, target, device), **further}

        return Workload(
            inputs=inputs,
            facts={"latency_input": f"{source} source and {target} target tokens"},
        )
