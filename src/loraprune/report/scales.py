"""Scales of charts: from values to positions, and where the ticks go."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from loraprune.report import numbers

if TYPE_CHECKING:
    from collections.abc import Sequence

_SUPERSCRIPTS = str.maketrans(
    "-0123456789",
    "\N{SUPERSCRIPT MINUS}\N{SUPERSCRIPT ZERO}\N{SUPERSCRIPT ONE}\N{SUPERSCRIPT TWO}\N{SUPERSCRIPT THREE}"
    "\N{SUPERSCRIPT FOUR}\N{SUPERSCRIPT FIVE}\N{SUPERSCRIPT SIX}\N{SUPERSCRIPT SEVEN}\N{SUPERSCRIPT EIGHT}"
    "\N{SUPERSCRIPT NINE}",
)


@dataclass(frozen=True, kw_only=True)
class Scale:
    """A linear map of the values from ``low`` to ``high`` onto positions from ``start`` to ``end``."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """Return the position of ``value``; values outside go to the nearer end."""
        share = (value - self.low) / (self.high - self.low)
        return self.start + min(max(share, 0.0), 1.0) * (self.end - self.start)


def tick_step(span: float, count: int, whole: bool = False) -> float:
    """Choose the smallest step of 1, 2 or 5 times a power of ten that gives at most ``count`` intervals."""
    least = span / max(count, 1)
    power = 10.0 ** math.floor(math.log10(least))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= least * (1 - 1e-9))
    return max(step, 1.0) if whole else step


def nice_domain(values: Sequence[float], count: int) -> tuple[float, float]:
    """Widen the range of ``values`` to whole steps; without any span, to something around the one value."""
    low, high = min(values, default=0.0), max(values, default=1.0)
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        margin = 0.1 * abs(low) or 1.0
        low, high = low - margin, high + margin
    step = tick_step(high - low, count)
    return math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step


def ticks(low: float, high: float, count: int, whole: bool = False) -> list[tuple[float, str]]:
    """Place ticks at round values between ``low`` and ``high``; each comes with its label."""
    step = tick_step(high - low, count, whole)
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [(index * step, _label(index * step, step, decimals)) for index in range(first, last + 1)]


def log_ticks(low: float, high: float, count: int) -> list[tuple[float, str]]:
    """Place ticks on a scale of decimal logarithms: at powers of ten, in a narrow range between them.

    Args:
        low: decimal logarithm of the least value.
        high: decimal logarithm of the greatest value.
        count: at most this many ticks, roughly.

    Returns:
        Decimal logarithms with the labels of their values.
    """
    first, last = math.ceil(low - 1e-9), math.floor(high + 1e-9)
    stride = max(1, math.ceil((last - first + 1) / count))
    decades = [
        (float(exponent), power_of_ten(exponent)) for exponent in range(first, last + 1) if exponent % stride == 0
    ]
    if len(decades) >= 3 or high - low > 2:
        return decades
    between = [
        (math.log10(factor) + exponent, power_of_ten(exponent, factor))
        for exponent in range(math.floor(low), last + 1)
        for factor in (1, 2, 5)
        if low - 1e-9 <= math.log10(factor) + exponent <= high + 1e-9
    ]
    if len(between) >= 2:
        return between[:: math.ceil(len(between) / count)]
    return [(value, numbers.significant(10.0**value, 2)) for value in (low, (low + high) / 2, high)]


def power_of_ten(exponent: int, factor: int = 1) -> str:
    """Write ``factor`` times ten to the ``exponent`` with raised digits; small powers in full."""
    if -2 <= exponent <= 3:
        return f"{factor * 10.0**exponent:,.{max(0, -exponent)}f}"
    power = "10" + str(exponent).translate(_SUPERSCRIPTS)
    return power if factor == 1 else f"{factor}\N{MIDDLE DOT}{power}"


def _label(value: float, step: float, decimals: int) -> str:
    if step < 1e-4 or abs(value) >= 1e7:
        return f"{value:.3g}".replace("-", "\N{MINUS SIGN}")
    text = f"{value:,.{decimals}f}"
    return text.replace("-", "\N{MINUS SIGN}") if float(text.replace(",", "")) else text.lstrip("-")
