"""FLAP: how much each group makes a consumer's output fluctuate, and the bias that replaces its mean."""

from __future__ import annotations

import torch


@torch.no_grad()
def flap_group_scores(weight_OI: torch.Tensor, variance_I: torch.Tensor, positions_GK: torch.Tensor) -> torch.Tensor:
    """Sum of ``s_j / std(s)`` over the columns j of each group, with ``s_j = Var(x_j)·‖W_:,j‖²``.

    A bias can replace the mean of a feature, see :func:`bias_of_removed`. Only its variation around the mean is lost.
    If groups have several columns, as heads do, ``s_j`` is squared first. The standard deviation is that over all
    columns that belong to groups, with ``n - 1``. If all columns are equal, or there is only one, the scores are 0.

    Args:
        weight_OI: effective weight of the consumer.
        variance_I: variance of each of its input features over the calibration tokens. Values that rounding left
            below zero count as zero.
        positions_GK: columns that belong to each group, int64.

    Returns:
        One score per group, float32, shape ``(groups,)``.

    Source: FLAP (arXiv 2312.11983), weighted input feature variance; the square and the deviation over columns are
    those of its public code.
    """
    norm_I = torch.linalg.vector_norm(weight_OI, dim=0, dtype=torch.float32)
    score_GK = (variance_I.to(torch.float32).clamp_min(0) * norm_I.square())[positions_GK]
    greatest, least = score_GK.amax(), score_GK.amin()
    score_GK = score_GK / greatest  # squares of very small or very large scores would leave the range of 32 bits
    if positions_GK.shape[1] > 1:
        score_GK = score_GK.square()
    deviation = ((score_GK - score_GK.mean()).square().sum() / (score_GK.numel() - 1)).sqrt()
    # Compared exactly, because the deviation of equal scores may be off by a rounding error.
    score_GK = torch.where(greatest == least, torch.zeros_like(score_GK), score_GK / deviation)
    return score_GK.sum(1)


@torch.no_grad()
def standardized(scores: torch.Tensor, group_size: int) -> torch.Tensor:
    """Mean of ``(s_j - mean(s)) / std(s)`` over the columns of each group, which ranks groups of all dimensions.

    Args:
        scores: scores of all groups of one dimension by :func:`flap_group_scores`.
        group_size: number of columns in a group.

    Source: FLAP (arXiv 2312.11983), its standardized metric for a global structure, and its public code.
    """
    means = scores / group_size
    return means - means.mean()


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
