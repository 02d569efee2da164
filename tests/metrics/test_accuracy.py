from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch import nn

from loraprune.metrics.accuracy import accuracy
from loraprune.metrics.perplexity import ROWS_PER_BATCH, HeldOutRows, on_device


class Table(nn.Module):
    """Looks up logits by the row's number; drops out everything while it trains."""

    def __init__(self, logits: torch.Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits)
        self.calls: list[int] = []
        self.dtype = logits.dtype

    def forward(self, number: torch.Tensor) -> Any:
        self.calls.append(len(number))
        return SimpleNamespace(logits=self.logits[number] * (0.0 if self.training else 1.0))


def held_out(labels: list[int]) -> HeldOutRows:
    rows = Dataset.from_dict({"number": list(range(len(labels))), "label": labels})

    def collate(batch: list[Any]) -> dict[str, Any]:
        return {
            "number": torch.tensor([row["number"] for row in batch]),
            "labels": torch.tensor([row["label"] for row in batch]),
        }

    return HeldOutRows(rows=rows, collator=collate)


def test_accuracy_and_loss_are_those_of_all_examples_at_once() -> None:
    labels = torch.randint(3, (70,))
    logits = torch.randn(70, 3)
    model = Table(logits)
    found = accuracy(model, held_out(labels.tolist()))
    assert found.num_examples == 70
    assert found.accuracy == int((logits.argmax(1) == labels).sum()) / 70
    assert found.loss == pytest.approx(nn.functional.cross_entropy(logits, labels).item(), rel=1e-6)
    assert model.calls == [ROWS_PER_BATCH, ROWS_PER_BATCH, 70 - 2 * ROWS_PER_BATCH]
    assert model.training


def test_the_first_rows_alone_can_be_had() -> None:
    rows = held_out([0] * 40)
    assert [len(rows.batch(part)["labels"]) for part in rows.parts(35)] == [32, 3]
    assert held_out([0] * 4).parts(35) == [range(4)]


def test_pixels_take_the_dtype_of_the_model_and_labels_keep_theirs() -> None:
    batch = {"pixel_values": torch.zeros(1), "labels": torch.zeros(1, dtype=torch.long), "note": "kept"}
    moved = on_device(batch, torch.device("cpu"), torch.bfloat16)
    assert moved["pixel_values"].dtype == torch.bfloat16
    assert moved["labels"].dtype == torch.long
    assert moved["note"] == "kept"
