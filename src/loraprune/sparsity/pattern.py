"""Number and positions of the weights that become zero: a share of them, or N of every M."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

ROUNDING = 1e-9
"""Largest deviation from a whole number that counts as rounding: 0.29 · 100 is 28.999…"""


@dataclass(frozen=True)
class SparsityPattern:
    """A sparsity.

    Attributes:
        ratio: share of the weights that become zero.
        n: number of weights that become zero among every ``m`` consecutive weights of a row; None if the pattern is
            free.
        m: see ``n``.
    """

    ratio: float
    n: int | None = None
    m: int | None = None

    def __str__(self) -> str:
        return f"{self.ratio:.0%}" if self.n is None else f"{self.n}:{self.m}"

    def count(self, weights: int) -> int:
        """Return how many of ``weights`` compared weights become zero."""
        return math.floor(weights * self.ratio + ROUNDING)

    def check_width(self, width: int, name: str) -> None:
        """Check that a matrix can have the pattern.

        Args:
            width: number of inputs of the matrix.
            name: name of the matrix, for the message.

        Raises:
            ValueError: the width is not a multiple of ``m``.
        """
        if self.m is not None and width % self.m:
            raise ValueError(
                f"{name} has {width} inputs, which is not a multiple of {self.m}, so it cannot be {self}-sparse. "
                "Choose an M that divides the width of every layer, or a sparsity without a pattern, such as "
                f"{self.ratio:g}."
            )


def parse_pattern(value: str | float) -> SparsityPattern:
    """Read ``0.5``, ``"50%"`` or ``"2:4"`` (in N:M, N of every M consecutive weights of a row become zero).

    Raises:
        ValueError: the value is none of these, or removes nothing or everything.
    """
    text = str(value).strip()
    pair = re.fullmatch(r"(\d+):(\d+)", text)
    if pair:
        n, m = int(pair[1]), int(pair[2])
        if not 0 < n < m:
            raise ValueError(
                f"The sparsity is {text}. Of every M consecutive weights of a row, N become zero, so N must be at "
                "least 1 and less than M, as in 2:4."
            )
        return SparsityPattern(n / m, n, m)
    try:
        ratio = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        raise ValueError(f"The sparsity {text!r} is neither a share such as 0.5 nor a pattern such as 2:4.") from None
    if not 0.0 < ratio < 1.0:
        raise ValueError(
            f"The sparsity is {text}; it must lie between 0 and 1: the share of the weights that become zero."
        )
    return SparsityPattern(ratio)
