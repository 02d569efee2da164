"""A few round ticks for the axes of a comparison, and positions of its labels."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from loraprune.record import numbers

if TYPE_CHECKING:
    from matplotlib.axis import Axis

LOG_FROM = 8.0
"""Ratio of largest to smallest figure from which an axis is logarithmic."""

_WIDE = 100.0
_UNITS = ((86_400.0, "d"), (3_600.0, "h"), (60.0, "min"), (1.0, "s"))
_STEPS = (1, 2, 5, 10, 15, 20, 30, 60, 100, 1_000, 10_000, 100_000)
"""Allowed distances between ticks."""

_TIMES = (0.01, 0.1, 1, 10, 60, 600, 3_600, 36_000, 86_400, 864_000, 8_640_000)
_CLOSE_TIMES = (
    *(0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 60, 180, 600, 1_800, 3_600, 10_800, 36_000),
    *(86_400, 259_200, 864_000, 2_592_000),
)
"""Possible ticks of times on a logarithmic axis, for a very wide spread and for others."""


def set_ticks(axis: Axis, values: Sequence[float], text: Callable[[float], str], most: int) -> None:
    """Scale an axis for figures, logarithmically if they spread widely, and choose its ticks.

    Args:
        axis: axis of a panel.
        values: finite values to show.
        text: formats one value.
        most: approximate maximum number of ticks.
    """
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

    if spreads(values):
        _take_logarithms(axis)
        wide = max(values) / min(values) >= _WIDE
        axis.set_major_locator(LogLocator(subs=(1,) if wide else (1, 2, 5), numticks=most + 3))
        axis.set_minor_formatter(NullFormatter())
    else:
        axis.set_major_locator(MaxNLocator(most))
    axis.set_major_formatter(FuncFormatter(lambda value, _: without_zeros(text(value))))


def spreads(values: Sequence[float]) -> bool:
    """Whether figures spread so widely that a logarithmic axis shows them better."""
    return bool(values) and min(values) > 0 and max(values) / min(values) >= LOG_FROM


def set_time_ticks(axis: Axis, seconds: Sequence[float], most: int) -> None:
    """Scale an axis of durations: whole seconds, minutes, hours or days."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, MultipleLocator, NullLocator

    if spreads(seconds):
        _take_logarithms(axis)
        wide = max(seconds) / min(seconds) >= _WIDE
        axis.set_major_locator(FixedLocator(_TIMES if wide else _CLOSE_TIMES))
        axis.set_minor_locator(NullLocator())
    elif len(set(seconds)) == 1:
        axis.set_major_locator(FixedLocator(seconds))
    elif seconds:
        span = (max(seconds) - min(seconds)) / most
        unit = next((size for size, _ in _UNITS if span >= size), min(1.0, 10.0 ** math.floor(math.log10(span))))
        axis.set_major_locator(MultipleLocator(unit * next(step for step in _STEPS if unit * step >= span)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: time_text(value)))


def _take_logarithms(axis: Axis) -> None:
    name = "xscale" if axis is axis.axes.xaxis else "yscale"
    axis.axes.set(**{name: "log"})


def time_text(seconds: float) -> str:
    """A duration in one unit if it is round (``10 min``, ``1.5 h``), else in two (``5 min 10 s``)."""
    size, name = next(((size, name) for size, name in _UNITS if abs(seconds) >= size), _UNITS[-1])
    count = without_zeros(f"{seconds / size:.3g}")
    return f"{count} {name}" if math.isclose(float(count) * size, seconds) else numbers.duration(seconds)


def without_zeros(text: str) -> str:
    """``5.00 ms`` as ``5 ms``, ``2.50 M`` as ``2.5 M``."""
    return re.sub(r"(\.\d*?)0+(?=\D|$)", lambda found: found[1].rstrip("."), text)


# Positions of labels beside points. If possible, they cover neither points nor each other.

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
    """Find the lower left corner of each label. Each in turn takes the best remaining position.

    Args:
        points: in pixels, y upward.
        sizes: widths and heights of the labels.
        area: area that the labels should stay in.
        gap: distance from the point to its label, about the radius of a mark.
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
    """Box of a label beside a point, in one of eight directions. On a diagonal it may be closer."""
    across, up = direction
    near = 0.7 * distance if across and up else distance
    left = x - width / 2 + across * (near + width / 2)
    bottom = y - height / 2 + up * (near + height / 2)
    return (left, bottom, left + width, bottom + height)


def _overlap(one: Box, other: Box) -> float:
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    return max(0.0, width) * max(0.0, height)
