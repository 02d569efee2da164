from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from datasets import Dataset
from tests.tasks.models import byte_tokenizer, tiny_t5
from transformers import DataCollatorForSeq2Seq, PreTrainedModel

from loraprune.data.pairs import prepare_pairs
from loraprune.metrics.accuracy import target_quality
from loraprune.metrics.perplexity import HeldOutRows

PAIRS = {"source": ["ab", "a longer one", "c"], "target": ["ba", "x", "yes it is"]}


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    torch.manual_seed(0)
    return tiny_t5()


def held_out(pairs: dict[str, list[str]]) -> HeldOutRows:
    tokenizer = byte_tokenizer()
    rows = prepare_pairs(Dataset.from_dict(pairs), tokenizer, max_length=32).dataset
    return HeldOutRows(rows=rows, collator=DataCollatorForSeq2Seq(tokenizer))


def test_the_loss_is_the_mean_over_all_target_tokens(model: PreTrainedModel) -> None:
    found = target_quality(model, held_out(PAIRS), byte_tokenizer(), generated=1)
    tokenizer = byte_tokenizer()
    total, count = 0.0, 0
    for source, target in zip(*PAIRS.values(), strict=True):
        labels = tokenizer(target, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            loss = model(input_ids=tokenizer(source, return_tensors="pt")["input_ids"], labels=labels).loss
        total, count = total + loss.item() * labels.shape[1], count + labels.shape[1]
    assert found.num_tokens == count == 3 + 2 + 10
    assert found.loss == pytest.approx(total / count, rel=1e-5)
    assert found.perplexity == pytest.approx(math.exp(total / count), rel=1e-5)
    assert found.num_generated == 1


def test_targets_that_are_written_word_for_word_are_counted(
    model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = byte_tokenizer()
    asked: list[dict[str, Any]] = []

    def generate(**inputs: Any) -> torch.Tensor:
        """Start of the decoder, text, its end and padding; the second text is not the target."""
        asked.append(inputs)
        texts = ["<pad>ba</s>", "<pad>y</s>", "<pad>yes it is</s>"][: len(inputs["input_ids"])]
        return tokenizer(texts, padding=True, return_tensors="pt")["input_ids"]

    monkeypatch.setattr(model, "generate", generate)
    found = target_quality(model, held_out(PAIRS), tokenizer, generated=3)
    assert (found.exact_match, found.num_generated) == (2 / 3, 3)
    assert asked[0]["max_new_tokens"] == len("yes it is") + 1
    assert asked[0]["do_sample"] is False
    assert asked[0]["attention_mask"].sum(1).tolist() == [3, 13, 2]
