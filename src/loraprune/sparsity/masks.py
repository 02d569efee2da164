"""Scores of single weights, and masks of the weights that become zero. True in a mask means zero."""

from __future__ import annotations

import torch

from loraprune.sparsity.pattern import SparsityPattern

VARIANT_TOLERANCE = 1e-3
BISECTIONS = 50


def lowest(scores: torch.Tensor, count: int) -> torch.Tensor:
    """Mark the ``count`` lowest scores along the last dimension; ties take the first.

    Args:
        scores: shape ``(..., n)``.
        count: number of scores to mark, at most ``n``.

    Returns:
        True at the marked scores, shape of ``scores``.
    """
    if count == 0:
        return torch.zeros_like(scores, dtype=torch.bool)
    limit = scores.kthvalue(count, dim=-1, keepdim=True).values
    below = scores < limit
    equal = scores == limit
    missing = count - below.sum(-1, keepdim=True)
    return below | (equal & (equal.cumsum(-1, dtype=torch.int32) <= missing))


def lowest_of_matrix(scores_OI: torch.Tensor, pattern: SparsityPattern) -> torch.Tensor:
    """Compare all weights of a matrix with each other (in an N:M pattern, M consecutive ones)."""
    if pattern.m is not None:
        return lowest_of_parts(scores_OI, pattern)
    return lowest(scores_OI.flatten(), pattern.count(scores_OI.numel())).view_as(scores_OI)


def lowest_of_rows(scores_OI: torch.Tensor, pattern: SparsityPattern) -> torch.Tensor:
    """Compare the weights of each row, which is one output, with each other."""
    if pattern.m is not None:
        return lowest_of_parts(scores_OI, pattern)
    return lowest(scores_OI, pattern.count(scores_OI.shape[1]))


def lowest_of_parts(scores_OI: torch.Tensor, pattern: SparsityPattern) -> torch.Tensor:
    """Compare every M consecutive weights of a row with each other."""
    assert pattern.n is not None
    assert pattern.m is not None
    return lowest(scores_OI.unflatten(-1, (-1, pattern.m)), pattern.n).flatten(-2)


def lowest_of_rows_by_share(scores_OI: torch.Tensor, ratio: float) -> torch.Tensor:
    """Wanda's variant: every row loses its lowest scores, up to the same share α of the sum of its scores.

    α is found by bisection, until the ratio over the whole matrix is within 0.001 of the target. If rows are so short
    that a single weight is a larger step, the nearest possible ratio is taken.

    Source: Wanda (arXiv 2306.11695), "variant"; the rule is that of its public code.
    """
    order = scores_OI.sort(dim=1, stable=True)
    cumulated = order.values.double().cumsum(1)
    total = cumulated[:, -1:]
    low, high = 0.0, 1.0
    best, best_error = torch.zeros_like(total, dtype=torch.int64), float("inf")
    for _ in range(BISECTIONS):
        share = (low + high) / 2
        counts = (cumulated <= share * total).sum(1, keepdim=True)
        reached = float(counts.sum()) / scores_OI.numel()
        if abs(reached - ratio) < best_error:
            best, best_error = counts, abs(reached - ratio)
        if best_error <= VARIANT_TOLERANCE:
            break
        low, high = (low, share) if reached > ratio else (share, high)
    ranks = torch.arange(scores_OI.shape[1], device=scores_OI.device)
    return torch.zeros_like(scores_OI, dtype=torch.bool).scatter_(1, order.indices, ranks < best)


# Scores of single weights: the lowest matter least.


def magnitude(weight_OI: torch.Tensor) -> torch.Tensor:
    """``|W_ij|``."""
    return weight_OI.abs()


def wanda(weight_OI: torch.Tensor, norms_I: torch.Tensor) -> torch.Tensor:
    """``|W_ij| · ‖X_j‖₂``, with the norm of input feature j over all calibration tokens.

    Source: Wanda (arXiv 2306.11695), Eq. 1.
    """
    return weight_OI.abs() * norms_I
