"""Stability of a ranking of groups: rank correlation between the scores at one cut and at the next."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import torch

from loraprune.importance.moving_average import Scores

if TYPE_CHECKING:
    from loraprune.structure.dimensions import PrunableDimension


def ranks(values: torch.Tensor) -> torch.Tensor:
    """Ranks from 1, float64; equal values share the mean of their ranks.

    Args:
        values: 1-D, without NaN.
    """
    _, place, counts = torch.unique(values, sorted=True, return_inverse=True, return_counts=True)
    last = counts.cumsum(0).double()
    return (last - (counts - 1) / 2)[place]


def rank_correlation(first: torch.Tensor, second: torch.Tensor) -> float | None:
    """Spearman's rank correlation: Pearson's correlation of the ranks.

    Args:
        first: 1-D scores.
        second: other scores of the same groups, in the same order.

    Returns:
        A value in [−1, 1]; None if it is undefined: fewer than two groups, a score that is not finite, or all scores
        of one side equal.
    """
    if len(first) < 2 or not bool(torch.isfinite(first).all() and torch.isfinite(second).all()):
        return None
    a, b = (side - side.mean() for side in (ranks(first), ranks(second)))
    size = float(a.norm() * b.norm())
    return float(a @ b) / size if size > 0.0 else None


def stability(
    dimensions: Iterable[PrunableDimension], kept: Mapping[str, Sequence[int]], earlier: Scores, scores: Scores
) -> dict[str, float]:
    """Rank correlation of scores with earlier ones, over the groups that have both, averaged over the layers by kind.

    Args:
        dimensions: dimensions of the model.
        kept: groups that ``scores`` refers to, by their original numbers.
        earlier: last score of every group at the previous cut, NaN if it had none, shape ``(num_groups,)`` each;
            empty before the first cut.
        scores: scores at this cut, shape ``(groups kept,)`` each.

    Returns:
        Correlation by kind, for kinds with a correlation in at least one layer; layers without one do not count.
    """
    found: dict[str, list[float]] = {}
    for dimension in dimensions:
        if dimension.name not in earlier or dimension.name not in scores:
            continue
        before = earlier[dimension.name][list(kept[dimension.name])]
        known = torch.isfinite(before)
        correlation = rank_correlation(before[known], scores[dimension.name].float().cpu()[known])
        if correlation is not None:
            found.setdefault(dimension.kind, []).append(correlation)
    return {kind: sum(values) / len(values) for kind, values in found.items()}
