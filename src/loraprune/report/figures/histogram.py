"""Importance scores counted on a logarithmic scale, kept and removed groups apart."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from loraprune.record.report_data import Importance

_DECADES = 12
_LEAST = 1e-99


@dataclass(frozen=True, kw_only=True)
class Bin:
    """Groups with scores from ``low`` to ``high``, given as decimal logarithms."""

    low: float
    high: float
    kept: int
    removed: int


@dataclass(frozen=True, kw_only=True)
class Histogram:
    """Scores counted in bins of equal width on a logarithmic scale.

    Attributes:
        bins: the bins from the least to the greatest score; empty where no score is positive.
        zero: groups whose score is zero, negative, or twelve decades below the greatest; None where there is none.
        unknown: groups whose score is NaN or infinite.
    """

    bins: tuple[Bin, ...]
    zero: Bin | None
    unknown: int


def histogram(dimensions: Sequence[Importance]) -> Histogram:
    """Count the scores of several dimensions together."""
    pairs = [pair for item in dimensions for pair in zip(item.scores, item.kept, strict=True)]
    finite = [(score, kept) for score, kept in pairs if math.isfinite(score)]
    greatest = max((score for score, _ in finite), default=0.0)
    floor = max(_LEAST, greatest * 10.0**-_DECADES)
    positive = [(math.log10(score), kept) for score, kept in finite if score > floor]
    zeros = [kept for score, kept in finite if score <= floor]
    zero = Bin(low=-math.inf, high=-math.inf, kept=sum(zeros), removed=len(zeros) - sum(zeros)) if zeros else None
    return Histogram(bins=_bins(positive), zero=zero, unknown=len(pairs) - len(finite))


def _bins(positive: Sequence[tuple[float, bool]]) -> tuple[Bin, ...]:
    """Cut the range of logarithms into bins, more of them the more scores there are."""
    if not positive:
        return ()
    low, high = min(positive)[0], max(positive)[0]
    if high - low < 0.1:
        low, high = low - 0.05, high + 0.05
    size = min(41, max(9, round(2 * len(positive) ** (1 / 3)) | 1))
    counts = [[0, 0] for _ in range(size)]
    for value, kept in positive:
        place = min(size - 1, int((value - low) / (high - low) * size))
        counts[place][0 if kept else 1] += 1
    step = (high - low) / size
    return tuple(
        Bin(low=low + i * step, high=low + (i + 1) * step, kept=kept, removed=removed)
        for i, (kept, removed) in enumerate(counts)
    )
