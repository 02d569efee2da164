"""Figures that were measured on the same have the same fingerprint, and others have another."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from datasets import Dataset

from loraprune.metrics.fingerprint import DataFingerprint
from loraprune.metrics.perplexity import HeldOut, HeldOutRows

IDS = torch.arange(12)


def of_tokens(*sequences: tuple[torch.Tensor, torch.Tensor]) -> str:
    return DataFingerprint(HeldOut(sequences=sequences)).value


def of_rows(pixels: torch.Tensor, dtype: torch.dtype = torch.float32, label: int = 1) -> str:
    def collate(rows: list[Any]) -> dict[str, Any]:
        return {"pixel_values": pixels.to(dtype), "labels": torch.tensor([label])}

    data = DataFingerprint(HeldOutRows(rows=Dataset.from_dict({"row": [0]}), collator=collate))
    assert isinstance(data.held_out, HeldOutRows)
    (part,) = data.held_out.parts()
    batch = data.held_out.batch(part)
    assert torch.equal(batch["pixel_values"], pixels.to(dtype))
    return data.value


def test_the_same_tokens_have_the_same() -> None:
    assert of_tokens((IDS, IDS)) == of_tokens((IDS.clone(), IDS.int()))


@pytest.mark.parametrize(
    "other",
    [
        [(IDS + 1, IDS)],
        [(IDS, IDS.where(IDS > 3, -100))],
        [(IDS[:6], IDS[:6]), (IDS[6:], IDS[6:])],
        [(IDS, IDS), (IDS, IDS)],
        [(IDS.view(3, 4), IDS.view(3, 4))],
    ],
    ids=["tokens", "labels", "segments", "more", "shape"],
)
def test_other_tokens_labels_or_segments_have_another(other: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
    assert of_tokens((IDS, IDS)) != of_tokens(*other)


def test_rows_are_hashed_as_they_are_read_whatever_the_dtype_of_the_model() -> None:
    pixels = torch.randn(1, 3, 2, 2)
    assert of_rows(pixels) == of_rows(pixels, torch.bfloat16)
    assert of_rows(pixels) != of_rows(pixels + 1)
    assert of_rows(pixels) != of_rows(pixels, label=0)
