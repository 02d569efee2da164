"""The constraint that the expected share of removed parameters meets a target, as a Lagrangian.

Source: Wang, Wohlwend and Lei 2020 (arXiv 1910.04732), as in CoFi (Xia et al. 2022, arXiv 2204.00408) and Compresso
(arXiv 2310.05015).
"""

from __future__ import annotations

import torch


def expected_parameters(probabilities_G: torch.Tensor, parameters_G: torch.Tensor) -> torch.Tensor:
    """``Σ_g P(z_g > 0) · parameters of g``, a scalar in 64 bits: a model may have 1e11 of them."""
    return (probabilities_G.double() * parameters_G.double()).sum()


def lagrangian(removed: torch.Tensor, target: float, multipliers: torch.Tensor) -> torch.Tensor:
    """``λ₁·(ŝ − t) + λ₂·(ŝ − t)²``: added to the loss, descended in the gates and ascended in the multipliers.

    Args:
        removed: expected share ``ŝ`` of removed parameters, a scalar.
        target: ``t``.
        multipliers: ``λ₁`` and ``λ₂``.
    """
    excess = removed - target
    return multipliers[0] * excess + multipliers[1] * excess.square()


def target_at(step: int, steps: int, ratio: float, warmup: float, ramp: str) -> float:
    """Target of a step (counted from 0) that rises from 0 to ``ratio`` over the first ``warmup`` of ``steps``."""
    rising = warmup * steps
    progress = min(step / rising, 1.0) if rising else 1.0
    return ratio * (progress if ramp == "linear" else 1.0 - (1.0 - progress) ** 3)
