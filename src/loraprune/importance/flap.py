"""FLAP: how much each group makes a consumer's output fluctuate, and the bias that replaces its mean."""

from __future__ import annotations

import torch


@torch.no_grad()
def flap_group_scores(weight_OI: torch.Tensor, variance_I: torch.Tensor, positions_GK: torch.Tensor) -> torch.Tensor:
    """``Σ_j Var(x_j)·‖W_:,j‖²`` over the columns j of each group.

    A bias can replace the mean of a feature, see :func:`bias_of_removed`. Only its variation around the mean is lost.

    Args:
        weight_OI: effective weight of the consumer.
        variance_I: variance of each of its input features over the calibration tokens. Values that rounding left
            below zero count as zero.
        positions_GK: columns that belong to each group, int64.

    Returns:
        One score per group, float32, shape ``(groups,)``.

    Source: FLAP (arXiv 2312.11983), weighted input feature variance.
    """
    norm_I = torch.linalg.vector_norm(weight_OI, dim=0, dtype=torch.float32)
    score_I = variance_I.to(torch.float32).clamp_min(0) * norm_I.square()
    return score_I[positions_GK].sum(1)


@torch.no_grad()
def standardized(scores: torch.Tensor) -> torch.Tensor:
    """Scores of one dimension with mean 0 and standard deviation 1, which allows dimensions to be ranked together.

    The deviation is that of a sample, with ``n − 1``. If all scores are equal, or there is only one, they become 0.

    Source: FLAP (arXiv 2312.11983), its standardized metric for a global structure.
    """
    # Divided twice, because squares of very small or very large scores would leave the range of 32 bits.
    deviations = scores - scores.mean()
    deviations = deviations / deviations.abs().amax()
    standard = deviations / (deviations.square().sum() / (scores.numel() - 1)).sqrt()
    # Compared exactly, because the mean of equal scores may be off by a rounding error.
    return torch.where(scores.amax() == scores.amin(), torch.zeros_like(scores), standard)


@torch.no_grad()
def bias_of_removed(weight_OI: torch.Tensor, mean_I: torch.Tensor, removed_columns: torch.Tensor) -> torch.Tensor:
    """``W_D·E[x_D]``: added to the consumer's bias, keeps its mean output unchanged by the cut.

    Args:
        weight_OI: effective weight before the cut.
        mean_I: mean of each input feature.
        removed_columns: positions of the removed columns D, int64, or a mask of them.

    Returns:
        Float32, shape ``(out,)``.

    Source: FLAP (arXiv 2312.11983), baseline bias compensation.
    """
    return weight_OI[:, removed_columns].to(torch.float32) @ mean_I[removed_columns].to(torch.float32)
