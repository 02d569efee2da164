"""Wanda for groups: magnitude of a consumer's weights times magnitude of the inputs that they multiply."""

from __future__ import annotations

import torch


@torch.no_grad()
def wanda_group_scores(
    weight_OI: torch.Tensor, mean_square_I: torch.Tensor, positions_GK: torch.Tensor
) -> torch.Tensor:
    """``Σ_j Σ_i |W_ij|·sqrt(E[x_j²])`` over the columns j of each group and all rows i.

    Args:
        weight_OI: effective weight of the consumer.
        mean_square_I: mean square of each of its input features over the calibration tokens.
        positions_GK: columns that belong to each group, int64.

    Returns:
        One score per group, float32, shape ``(groups,)``.

    Source: Wanda (arXiv 2306.11695), Eq. 1, summed over the group. The paper takes the norm over all tokens rather
    than the root of the mean, which differs by one factor for the whole layer.
    """
    norm_I = torch.linalg.vector_norm(weight_OI, ord=1, dim=0, dtype=torch.float32)
    score_I = norm_I * mean_square_I.to(torch.float32).sqrt()
    return score_I[positions_GK].sum(1)
