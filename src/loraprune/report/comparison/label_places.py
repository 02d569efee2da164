"""Places for labels beside points, so that they cover neither points nor each other where that can be had."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

Box = tuple[float, float, float, float]
"""Left, bottom, right, top."""

_DIRECTIONS = ((1, 1), (-1, 1), (1, -1), (-1, -1), (0, 1), (0, -1), (1, 0), (-1, 0))


def label_places(
    points: Sequence[tuple[float, float]],
    sizes: Sequence[tuple[float, float]],
    area: Box,
    *,
    gap: float,
    taken: Sequence[Box] = (),
) -> list[tuple[float, float]]:
    """Find the lower left corner of each label; one after the other takes the best place that is left.

    Args:
        points: in pixels, y upward.
        sizes: widths and heights of the labels.
        area: that they should stay in.
        gap: from the point to its label, about the radius of a mark.
        taken: boxes that should stay free.
    """
    marks = [(x - gap, y - gap, x + gap, y + gap) for x, y in points]
    placed: list[Box] = []
    for index, ((x, y), (width, height)) in enumerate(zip(points, sizes, strict=True)):
        others = [mark for number, mark in enumerate(marks) if number != index]

        def cost(box: Box, occupied: Sequence[Box] = (*others, *placed, *taken)) -> float:
            inside = _overlap(box, area)
            outside = (box[2] - box[0]) * (box[3] - box[1]) - inside
            return sum(_overlap(box, other) for other in occupied) + 2 * outside

        rings = itertools.product((gap, 2.2 * gap), _DIRECTIONS)
        boxes = [_box(x, y, width, height, distance, direction) for distance, direction in rings]
        placed.append(min(boxes, key=cost))
    return [(box[0], box[1]) for box in placed]


def _box(x: float, y: float, width: float, height: float, distance: float, direction: tuple[int, int]) -> Box:
    """A label beside a point, in one of eight directions; diagonally it may come nearer."""
    across, up = direction
    near = 0.7 * distance if across and up else distance
    left = x - width / 2 + across * (near + width / 2)
    bottom = y - height / 2 + up * (near + height / 2)
    return (left, bottom, left + width, bottom + height)


def _overlap(one: Box, other: Box) -> float:
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    return max(0.0, width) * max(0.0, height)
