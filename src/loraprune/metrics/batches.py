"""Held-out rows as the batches that a model is called with."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from loraprune.calibration import placing

if TYPE_CHECKING:
    from datasets import Dataset

Collator = Callable[[list[Any]], dict[str, Any]]
"""Makes a batch of rows, as a Trainer's ``data_collator`` does."""

ROWS_PER_BATCH = 32


@dataclass(frozen=True, kw_only=True)
class HeldOutRows:
    """Rows to measure on, and what makes batches of them."""

    rows: Dataset
    collator: Collator

    def __len__(self) -> int:
        return len(self.rows)

    def batches(self, count: int | None = None) -> Iterator[dict[str, Any]]:
        """Batches in the rows' order; of the first ``count`` rows alone where that is given."""
        total = len(self) if count is None else min(count, len(self))
        for start in range(0, total, ROWS_PER_BATCH):
            yield self.collator([self.rows[i] for i in range(start, min(start + ROWS_PER_BATCH, total))])


def placed(batch: Mapping[str, Any], device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """A batch on a device; numbers with a fraction (pixels) in the dtype of the model's weights."""
    cast = {
        name: value.to(dtype) if isinstance(value, torch.Tensor) and value.is_floating_point() else value
        for name, value in batch.items()
    }
    moved: dict[str, Any] = placing.placed(cast, device)
    return moved
