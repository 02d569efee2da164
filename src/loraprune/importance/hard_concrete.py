"""The hard-concrete distribution: gates between 0 and 1 that are exactly 0 or 1 with a learnable probability.

Source: Louizos, Welling and Kingma 2018 (arXiv 1712.01312), Eq. 10 to 13.
"""

from __future__ import annotations

import math

import torch

TEMPERATURE = 2 / 3
"""β: how close to 0 and 1 the gates lie."""

LOWEST, HIGHEST = -0.1, 1.1
"""γ and ζ: the interval that a gate is stretched to before it is clamped to [0, 1]."""


def sampled_gates(log_alpha: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """A sample of each gate, differentiable in ``log_alpha``.

    Args:
        log_alpha: location of each gate: the higher, the likelier it is open.
        uniform: samples from (0, 1), same shape.
    """
    noise = uniform.log() - (-uniform).log1p()
    return _stretched(((noise + log_alpha) / TEMPERATURE).sigmoid())


def expected_gates(log_alpha: torch.Tensor) -> torch.Tensor:
    """The gates of a model that is used rather than trained: no sample, and exactly 0 or 1 where a gate is sure."""
    return _stretched(log_alpha.sigmoid())


def keep_probability(log_alpha: torch.Tensor) -> torch.Tensor:
    """``P(z > 0) = sigmoid(log α − β·log(−γ/ζ))``."""
    return (log_alpha - TEMPERATURE * math.log(-LOWEST / HIGHEST)).sigmoid()


def log_alpha_of(drop: float) -> float:
    """The location at which ``log α = logit(1 − drop)``: where gates start that are open but for a share ``drop``."""
    return math.log((1.0 - drop) / drop)


def _stretched(values: torch.Tensor) -> torch.Tensor:
    return (values * (HIGHEST - LOWEST) + LOWEST).clamp(0.0, 1.0)
