"""Lines of many points made fit to be drawn: smoothed, thinned out, looked through for gaps."""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    Points = list[tuple[float, float]]


def moving_average(values: Sequence[float], window: int, breaks: Iterable[int] = ()) -> list[float]:
    """Average each value with its neighbors on both sides.

    Args:
        values: the series; values that are not finite are left out of the averages.
        window: how many values an average spans, fewer at the ends.
        breaks: indices that start a new stretch; no average reaches over one, so that a jump stays a jump.
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
    """Reduce a line to about ``limit`` points that look the same: the least and the greatest of every stretch."""
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
    """The finite points of a line between two gaps, where a line has nothing to connect."""
    finite = [False, *(math.isfinite(value) for _, value in points), False]
    return [point for i, point in enumerate(points, start=1) if finite[i] and not finite[i - 1] and not finite[i + 1]]
