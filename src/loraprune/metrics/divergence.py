"""Kullback-Leibler divergence per token of a model's predictions from another model's."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import send_to_device

from loraprune.layers.unwrap import eval_mode
from loraprune.processes.shared_work import made_of_each

if TYPE_CHECKING:
    from torch import nn

    from loraprune.calibration.block_by_block import Calibration

MOST_LOGITS = 2**27
"""Maximum number of logits kept of the first model: 256 MB in 16 bits."""

_ROWS_AT_ONCE = 512


class Divergence:
    """``KL(first model ‖ model)`` on a few rows, with stored predictions of the first model.

    Args:
        model: the first model in its current state.
        rows: token ids (1-D tensors) or mappings of a model's inputs. As many of the first rows are used as
            :data:`MOST_LOGITS` allows, at least one.
    """

    def __init__(self, model: nn.Module, rows: Calibration) -> None:
        self._rows: list[Mapping[str, torch.Tensor]] = []
        self._logits: list[torch.Tensor] = []
        kept = 0
        for row in rows:
            inputs = {"input_ids": row[None]} if isinstance(row, torch.Tensor) else row
            logits = _logits(model, inputs)
            if self._rows and kept + logits.numel() > MOST_LOGITS:
                break
            kept += logits.numel()
            self._rows.append(inputs)
            self._logits.append(logits.to("cpu", torch.bfloat16))

    def of(self, model: nn.Module, *, shared: bool = False) -> float:
        """Return the divergence in nats per token (or per classified row); infinite if it is NaN.

        Args:
            model: the same in all processes.
            shared: divide the rows among the processes. All of them must call this.
        """
        made = made_of_each(len(self._rows), lambda number: self._of_row(model, number), shared=shared)
        total = sum(part for parts in made for part in parts)
        return math.inf if math.isnan(total) else total / sum(len(wanted) for wanted in self._logits)

    def _of_row(self, model: nn.Module, number: int) -> list[float]:
        """Sums over parts of a row."""
        sums = []
        given, wanted = _logits(model, self._rows[number]), self._logits[number]
        for part, first in zip(given.split(_ROWS_AT_ONCE), wanted.split(_ROWS_AT_ONCE), strict=True):
            logs = part.float().log_softmax(-1)
            before = first.to(part.device).float().log_softmax(-1)
            sums.append(float((before.exp() * (before - logs)).sum(dtype=torch.float64)))
        return sums


@torch.no_grad()
def _logits(model: nn.Module, inputs: Mapping[str, Any]) -> torch.Tensor:
    """Shape ``(tokens, vocabulary)``, or ``(rows, classes)``."""
    device = next(model.parameters()).device
    with eval_mode(model):
        logits: torch.Tensor = model(**send_to_device(dict(inputs), device)).logits
    return logits.flatten(0, -2)


def held_back(rows: Calibration, share: int) -> tuple[Sequence[Any], Sequence[Any]]:
    """Split rows for fitting and rows for judging: every ``share``-th row is held back, at least one."""
    judged = range(share - 1, len(rows), share) if len(rows) >= share else range(len(rows) - 1, len(rows))
    return [row for index, row in enumerate(rows) if index not in judged] or list(rows), [rows[i] for i in judged]
