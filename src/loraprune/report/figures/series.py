"""Preparation of numbers for figures: smoothing and thinning of lines, binning of importance scores."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    Points = list[tuple[float, float]]
    from loraprune.record.report_data import Importance


def moving_average(values: Sequence[float], window: int, breaks: Iterable[int] = ()) -> list[float]:
    """Average each value with its neighbors on both sides.

    Args:
        values: the series; values that are not finite are left out of the averages.
        window: number of values per average; fewer at the ends.
        breaks: indices that start a new stretch. No average crosses one, so a jump stays a jump.
    """
    bounds = sorted({0, len(values), *(index for index in breaks if 0 < index < len(values))})
    half = window // 2
    finite = [value if math.isfinite(value) else None for value in values]
    sums = list(itertools.accumulate((value or 0.0 for value in finite), initial=0.0))
    counts = list(itertools.accumulate((value is not None for value in finite), initial=0))
    averages = []
    for start, end in itertools.pairwise(bounds):
        for index in range(start, end):
            first, last = max(start, index - half), min(end, index + half + 1)
            count = counts[last] - counts[first]
            averages.append((sums[last] - sums[first]) / count if count else math.nan)
    return averages


def thin_out(points: Points, limit: int) -> Points:
    """Reduce a line to about ``limit`` points without a visible change: the minimum and maximum of every stretch."""
    if len(points) <= limit:
        return points
    length = math.ceil(2 * len(points) / limit)
    kept: Points = []
    for start in range(0, len(points), length):
        stretch = points[start : start + length]
        finite = [point for point in stretch if math.isfinite(point[1])] or stretch[:1]
        kept += sorted({min(finite, key=lambda point: point[1]), max(finite, key=lambda point: point[1])})
    return kept


def alone(points: Points) -> Points:
    """Return isolated finite points between two gaps, which no line segment shows."""
    finite = [False, *(math.isfinite(value) for _, value in points), False]
    return [point for i, point in enumerate(points, start=1) if finite[i] and not finite[i - 1] and not finite[i + 1]]


# Importance scores binned on a logarithmic scale, separately for kept and removed groups.

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
    """Scores binned in equal widths on a logarithmic scale.

    Attributes:
        bins: bins from the lowest to the highest score; empty if no score is positive.
        zero: groups whose score is zero, negative, or twelve decades below the highest; None if there is none.
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
    """Divide the range of logarithms into bins. More scores get more bins."""
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
