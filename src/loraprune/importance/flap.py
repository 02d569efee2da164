"""FLAP: how much a consumer's output fluctuates because of each group, and the bias that stands in for the rest."""

from __future__ import annotations

import torch


@torch.no_grad()
def flap_group_scores(weight_OI: torch.Tensor, variance_I: torch.Tensor, positions_GK: torch.Tensor) -> torch.Tensor:
    """``Σ_j Var(x_j)·‖W_:,j‖²`` over the columns j of each group.

    What a feature is on average a bias can stand in for, see :func:`bias_of_removed`; only what it is beyond that is
    lost with it.

    Args:
        weight_OI: effective weight of the consumer.
        variance_I: variance of each of its input features over the calibration tokens. Where it is a difference of
            moments that rounding left below zero, it counts as zero.
        positions_GK: columns that belong to each group, int64.

    Returns:
        One score a group, float32, shape ``(groups,)``.

    Source: FLAP (arXiv 2312.11983), weighted input feature variance.
    """
    norm_I = torch.linalg.vector_norm(weight_OI, dim=0, dtype=torch.float32)
    score_I = variance_I.to(torch.float32).clamp_min(0) * norm_I.square()
    return score_I[positions_GK].sum(1)


@torch.no_grad()
def standardized(scores: torch.Tensor) -> torch.Tensor:
    """Scores of one dimension with mean 0 and standard deviation 1, so that dimensions can be ranked together.

    The deviation is that of a sample, with ``n − 1``. Scores that are all the same, and a score on its own, become 0.

    Source: FLAP (arXiv 2312.11983), its standardized metric for a global structure.
    """
    # Divided twice: squares of scores that are very small or very large would leave the range of 32 bits.
    deviations = scores - scores.mean()
    deviations = deviations / deviations.abs().amax()
    standard = deviations / (deviations.square().sum() / (scores.numel() - 1)).sqrt()
    # Compared exactly, since the mean of equal scores may be off by a rounding error.
    return torch.where(scores.amax() == scores.amin(), torch.zeros_like(scores), standard)


@torch.no_grad()
def bias_of_removed(weight_OI: torch.Tensor, mean_I: torch.Tensor, removed_columns: torch.Tensor) -> torch.Tensor:
    """``W_D·E[x_D]``: what must be added to the consumer's bias so that its mean output outlives the cut.

    Args:
        weight_OI: effective weight before the cut.
        mean_I: mean of each input feature.
        removed_columns: positions of the columns D that go, int64, or a mask of them.

    Returns:
        Float32, shape ``(out,)``.

    Source: FLAP (arXiv 2312.11983), baseline bias compensation.
    """
    return weight_OI[:, removed_columns].to(torch.float32) @ mean_I[removed_columns].to(torch.float32)
