"""Moving average of importance scores over steps (LoRAPrune, Eq. 11)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

Scores = dict[str, torch.Tensor]
"""Importance of the remaining groups: name of a dimension to a float32 tensor of shape ``(groups kept,)``."""


@dataclass(frozen=True)
class MovingAverage:
    """State of the average.

    Attributes:
        values: ``λ·G + (1−λ)·Ĝ`` summed from zero; empty before the first update.
        updates: number of updates so far.
    """

    values: Scores = field(default_factory=dict)
    updates: int = 0


def updated(state: MovingAverage, scores: Scores, decay: float) -> MovingAverage:
    """Add the scores of one step: ``G_t = λ·G_{t−1} + (1−λ)·Ĝ_t`` with λ = ``decay``."""
    values = {
        name: (1.0 - decay) * new + (decay * state.values[name].to(new.device) if name in state.values else 0.0)
        for name, new in scores.items()
    }
    return MovingAverage(values, state.updates + 1)


def averaged(state: MovingAverage, decay: float, bias_correction: bool = True) -> Scores:
    """Return the average; bias correction divides by ``1 − λ^t`` to cancel the start from zero."""
    if not bias_correction or state.updates == 0:
        return dict(state.values)
    return {name: value / (1.0 - decay**state.updates) for name, value in state.values.items()}


def selected(state: MovingAverage, positions: Mapping[str, Sequence[int]]) -> MovingAverage:
    """Keep the entries of the groups that remain after a cut."""
    values = {
        name: value[torch.as_tensor(positions[name], device=value.device)] if name in positions else value
        for name, value in state.values.items()
    }
    return MovingAverage(values, state.updates)
