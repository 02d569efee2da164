"""The Pareto front: what nothing else beats in quality and in cost at once."""

from __future__ import annotations

import math
from collections.abc import Sequence


def pareto_front(
    costs: Sequence[float | None], qualities: Sequence[float | None], *, higher_is_better: bool
) -> tuple[bool, ...]:
    """Tell of each candidate whether it lies on the front.

    A candidate is off it if another one is at least as good in both and better in one. Of candidates that are equal in
    both, all lie on the front or none. One without a cost or a quality (None, NaN or infinite) does not, and beats
    nothing.

    Args:
        costs: of the candidates; lower is better.
        qualities: of the same candidates.
        higher_is_better: whether a high quality is a good one (accuracy) or a bad one (perplexity).

    Raises:
        ValueError: there is not one quality for each cost.
    """
    if len(costs) != len(qualities):
        raise ValueError(f"There are {len(costs)} costs and {len(qualities)} qualities. Give one of each a candidate.")
    points: dict[int, tuple[float, float]] = {}
    for index, (cost, quality) in enumerate(zip(costs, qualities, strict=True)):
        if cost is not None and quality is not None and math.isfinite(cost) and math.isfinite(quality):
            points[index] = (cost, -quality if higher_is_better else quality)
    on_front = [False] * len(costs)
    best = math.inf
    # From cheap to dear: on the front is what is better than all that is cheaper, and equals the best of its own cost.
    for cost in sorted({cost for cost, _ in points.values()}):
        here = min(quality for price, quality in points.values() if price == cost)
        if here < best:
            best = here
            for index, point in points.items():
                on_front[index] = on_front[index] or point == (cost, here)
    return tuple(on_front)
