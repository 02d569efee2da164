"""Accuracy and loss of a classifier on held-out examples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from loraprune.layers.inference import inference_mode
from loraprune.metrics.batches import HeldOutRows, placed

if TYPE_CHECKING:
    from transformers import PreTrainedModel


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
    with inference_mode(model):
        for batch in held_out.batches():
            inputs = placed(batch, device, model.dtype)
            labels = inputs.pop("labels")
            logits = model(**inputs).logits.float()
            total += torch.nn.functional.cross_entropy(logits, labels, reduction="sum").item()
            right += int((logits.argmax(-1) == labels).sum())
            count += len(labels)
    return Accuracy(accuracy=right / count, loss=total / count, num_examples=count)
