"""Scores of single weights: what of a matrix matters least."""

from __future__ import annotations

import torch


def magnitude(weight_OI: torch.Tensor) -> torch.Tensor:
    """``|W_ij|``."""
    return weight_OI.abs()


def wanda(weight_OI: torch.Tensor, norms_I: torch.Tensor) -> torch.Tensor:
    """``|W_ij| · ‖X_j‖₂``, with the norm of input feature j over all calibration tokens.

    Source: Wanda (arXiv 2306.11695), Eq. 1.
    """
    return weight_OI.abs() * norms_I
