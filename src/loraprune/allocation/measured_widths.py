"""The allocation ``measured``: tries widths and keeps those that change the model least."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import product

from loraprune.structure.dimensions import Structure
from loraprune.structure.matching_widths import final_candidates, most_even
from loraprune.structure.widths import LegalWidths, Widths, widest


@dataclass(frozen=True)
class WidthTrial:
    """Result of trying widths.

    Attributes:
        widths: groups that each stratum of the widest layer keeps, by kind.
        divergence: divergence from the dense model in nats per token, on calibration rows that no repair used.
        even: whether heads and channels lose the same share, as nearly as possible.
    """

    widths: Mapping[str, int]
    divergence: float
    even: bool = False


def search_widths(
    structure: Structure, ratio: float, legal: LegalWidths, measure: Callable[[Widths], float]
) -> tuple[WidthTrial, ...]:
    """Search for the widths that reach a ratio and change the model least; only some of many head counts are tried.

    The search begins with the widths that lose the same share everywhere, and with the largest possible head count. It
    moves from the best widths to neighboring ones, with ever smaller steps.

    Args:
        structure: structure of the model before any pruning.
        ratio: removed parameters as a share of all prunable ones.
        legal: widths that may be chosen.
        measure: returns the divergence of a model that was cut to the given widths and repaired.

    Returns:
        The trials, best first; empty if only one choice of widths reaches the ratio.

    Source: the divergence from the dense model as the fitness of widths is that of EvoPress (arXiv 2410.14649).
    """
    dense = {kind: widest(structure, kind) for kind in structure.kinds}
    found = final_candidates(structure, dense, ratio, legal)
    if len(found) == 1:
        return ()
    kinds = [kind for kind in structure.kinds if kind in legal.counts]
    points = {tuple(widths[kind] for kind in kinds): widths for widths in found}
    trials: dict[tuple[int, ...], float] = {}

    def measured(point: tuple[int, ...]) -> float:
        if point not in trials:
            trials[point] = measure(points[point])
        return trials[point]

    even = most_even(structure, found, ratio, legal)
    best = min([tuple(even[kind] for kind in kinds), max(points)], key=measured)
    step = max(1, max(len({point[axis] for point in points}) for axis in range(len(kinds))) // 4)
    while step:
        nearest = min(_neighbours(points, best, step), key=measured, default=best)
        if measured(nearest) < measured(best):
            best = nearest
        else:
            step //= 2
    return tuple(
        WidthTrial(points[point], trials[point], points[point] == even) for point in sorted(trials, key=measured)
    )


def _neighbours(
    points: Mapping[tuple[int, ...], Widths], point: tuple[int, ...], step: int
) -> Iterator[tuple[int, ...]]:
    """Points that are ``step`` choices away along one axis or several."""
    axes = [sorted({other[axis] for other in points}) for axis in range(len(point))]
    places = [axis.index(value) for axis, value in zip(axes, point, strict=True)]
    for moves in product((-step, 0, step), repeat=len(point)):
        moved = [place + move for place, move in zip(places, moves, strict=True)]
        if any(moves) and all(0 <= place < len(axis) for place, axis in zip(moved, axes, strict=True)):
            other = tuple(axis[place] for place, axis in zip(moved, axes, strict=True))
            if other in points:
                yield other
