"""Text classifiers: tuned by transformers' Trainer, measured by accuracy."""

from __future__ import annotations

import copy
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch

from loraprune.checkpoint.load import give_pad_token_
from loraprune.data.prepared import PreparedRows
from loraprune.data.sentences import prepare_sentences
from loraprune.metrics.batches import Collator, HeldOutRows
from loraprune.metrics.evaluation_accuracy import accuracy
from loraprune.tasks.labels import check_classifier
from loraprune.tasks.measures import classifier_measures
from loraprune.tasks.task import LATENCY_TOKENS, Setup, Task, Workload, random_tokens

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PretrainedConfig, PreTrainedModel

    from loraprune.recipes.steps.job import Job


class TextClassification(Task):
    """Tell which of several classes a text, or a pair of texts, is of."""

    name = "text-classification"
    auto_class = "AutoModelForSequenceClassification"
    adapter_type = "SEQ_CLS"
    row_name = "texts"
    measures = classifier_measures("texts")
    eval_rows = 1000
    trains_head = True

    def check_model(self, config: PretrainedConfig) -> None:
        """One label of several, no regression and no set of labels."""
        check_classifier(config)

    def prepare(self, rows: Dataset, setup: Setup) -> PreparedRows:
        """Tokenize texts or pairs of them."""
        assert setup.max_length is not None
        return prepare_sentences(rows, setup.processor, setup.config, max_length=setup.max_length)

    def collator(self, prepared: PreparedRows, setup: Setup) -> Collator:
        """The user's own, or one that pads."""
        from transformers import DataCollatorWithPadding

        if setup.collator is not None:
            return setup.collator
        tokenizer = copy.deepcopy(setup.processor)
        give_pad_token_(tokenizer)
        return DataCollatorWithPadding(tokenizer)

    def quality(self, model: PreTrainedModel, job: Job) -> dict[str, Any]:
        """Accuracy and loss."""
        assert isinstance(job.held_out, HeldOutRows)
        return asdict(accuracy(model, job.held_out))

    def workload(self, job: Job) -> Workload:
        """One text."""
        tokens = min(LATENCY_TOKENS, job.context or LATENCY_TOKENS)

        def inputs(model: PreTrainedModel, device: torch.device) -> dict[str, Any]:
            ids = random_tokens(model, tokens, device)
            return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

        return Workload(
            inputs=inputs,
            facts={"latency_input": f"1 × {tokens} tokens"},
        )
