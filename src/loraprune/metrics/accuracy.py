"""Accuracy of classifiers, and how well encoder–decoder models write held-out targets."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from loraprune.layers.unwrap import eval_mode
from loraprune.metrics.perplexity import IGNORED, HeldOutRows, on_device

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True, kw_only=True)
class TargetQuality:
    """Measures of an encoder–decoder model.

    Attributes:
        loss: mean negative log-likelihood of the targets' tokens, in nats.
        perplexity: ``exp`` of it.
        num_tokens: target tokens.
        exact_match: share of the targets that greedy decoding writes word for word.
        num_generated: targets that were generated.
    """

    loss: float
    perplexity: float
    num_tokens: int
    exact_match: float
    num_generated: int


@torch.no_grad()
def target_quality(
    model: PreTrainedModel, held_out: HeldOutRows, tokenizer: PreTrainedTokenizerBase, *, generated: int
) -> TargetQuality:
    """Measure likelihoods of all held-out targets, and generate the first ``generated`` of them."""
    device = next(model.parameters()).device
    total, count = 0.0, 0
    with eval_mode(model):
        for batch in held_out.batches():
            inputs = on_device(batch, device, model.dtype)
            logits = model(**inputs).logits.float()
            labels = inputs["labels"]
            total += torch.nn.functional.cross_entropy(
                logits.flatten(0, 1), labels.flatten(), reduction="sum", ignore_index=IGNORED
            ).item()
            count += int((labels != IGNORED).sum())
        matches = [
            match
            for batch in held_out.batches(generated)
            for match in _matches(model, on_device(batch, device, model.dtype), tokenizer)
        ]
    loss = total / count
    return TargetQuality(
        loss=loss,
        perplexity=math.exp(loss) if loss < 700.0 else math.inf,
        num_tokens=count,
        exact_match=sum(matches) / len(matches),
        num_generated=len(matches),
    )


def _matches(model: Any, inputs: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> list[bool]:
    """Whether greedy decoding writes each target of a batch; it may write as many tokens as the longest has."""
    labels = inputs["labels"]
    output = model.generate(
        input_ids=inputs["input_ids"],
        attention_mask=inputs["attention_mask"],
        max_new_tokens=labels.shape[1],
        do_sample=False,
        num_beams=1,
    )
    targets = [row[row != IGNORED] for row in labels]
    written, wanted = (
        [str(tokenizer.decode(ids, skip_special_tokens=True)).strip() for ids in rows] for rows in (output, targets)
    )
    return [a == b for a, b in zip(written, wanted, strict=True)]


# Accuracy and loss of a classifier on held-out examples.


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """How well a classifier does.

    Attributes:
        accuracy: share of the examples whose label has the largest logit.
        loss: mean cross-entropy in nats.
        num_examples: examples measured.
    """

    accuracy: float
    loss: float
    num_examples: int


@torch.no_grad()
def accuracy(model: PreTrainedModel, held_out: HeldOutRows) -> Accuracy:
    """Measure a classifier; losses are summed in 32 bits whatever its dtype."""
    device = next(model.parameters()).device
    right, total, count = 0, 0.0, 0
    with eval_mode(model):
        for batch in held_out.batches():
            inputs = on_device(batch, device, model.dtype)
            labels = inputs.pop("labels")
            logits = model(**inputs).logits.float()
            total += torch.nn.functional.cross_entropy(logits, labels, reduction="sum").item()
            right += int((logits.argmax(-1) == labels).sum())
            count += len(labels)
    return Accuracy(accuracy=right / count, loss=total / count, num_examples=count)
