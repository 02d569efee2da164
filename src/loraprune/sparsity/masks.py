"""Which weights become zero: patterns, scores of single weights, and masks. True in a mask stands for zero."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import torch

VARIANT_TOLERANCE = 1e-3
BISECTIONS = 50


def lowest(scores: torch.Tensor, count: int) -> torch.Tensor:
    """Mark the ``count`` lowest scores along the last dimension; of equal ones the first.

    Args:
        scores: shape ``(..., n)``.
        count: how many of the ``n``.

    Returns:
        True where a score is among them, shape of ``scores``.
    """
    if count == 0:
        return torch.zeros_like(scores, dtype=torch.bool)
    limit = scores.kthvalue(count, dim=-1, keepdim=True).values
    below = scores < limit
    equal = scores == limit
    missing = count - below.sum(-1, keepdim=True)
    return below | (equal & (equal.cumsum(-1, dtype=torch.int32) <= missing))


def lowest_of_matrix(scores_OI: torch.Tensor, pattern: SparsityPattern) -> torch.Tensor:
    """Compare all weights of a matrix with each other (of every M consecutive ones in an N:M pattern)."""
    if pattern.m is not None:
        return lowest_of_parts(scores_OI, pattern)
    return lowest(scores_OI.flatten(), pattern.count(scores_OI.numel())).view_as(scores_OI)


def lowest_of_rows(scores_OI: torch.Tensor, pattern: SparsityPattern) -> torch.Tensor:
    """Compare the weights of each row, which is one output, with each other."""
    if pattern.m is not None:
        return lowest_of_parts(scores_OI, pattern)
    return lowest(scores_OI, pattern.count(scores_OI.shape[1]))


def lowest_of_parts(scores_OI: torch.Tensor, pattern: SparsityPattern) -> torch.Tensor:
    """Compare every M consecutive weights of a row with each other."""
    assert pattern.n is not None
    assert pattern.m is not None
    return lowest(scores_OI.unflatten(-1, (-1, pattern.m)), pattern.n).flatten(-2)


def lowest_of_rows_by_share(scores_OI: torch.Tensor, ratio: float) -> torch.Tensor:
    """Wanda's variant: every row loses its lowest scores up to the same share α of the sum of its scores.

    α is found by bisection, until the ratio over the whole matrix is met to ±0.001; where the rows are so short that
    one weight more is a larger step, to the nearest that there is.

    Source: Wanda (arXiv 2306.11695), "variant"; the rule is that of its public code.
    """
    order = scores_OI.sort(dim=1, stable=True)
    cumulated = order.values.double().cumsum(1)
    total = cumulated[:, -1:]
    low, high = 0.0, 1.0
    best, best_error = torch.zeros_like(total, dtype=torch.int64), float("inf")
    for _ in range(BISECTIONS):
        share = (low + high) / 2
        counts = (cumulated <= share * total).sum(1, keepdim=True)
        reached = float(counts.sum()) / scores_OI.numel()
        if abs(reached - ratio) < best_error:
            best, best_error = counts, abs(reached - ratio)
        if best_error <= VARIANT_TOLERANCE:
            break
        low, high = (low, share) if reached > ratio else (share, high)
    ranks = torch.arange(scores_OI.shape[1], device=scores_OI.device)
    return torch.zeros_like(scores_OI, dtype=torch.bool).scatter_(1, order.indices, ranks < best)


# How many weights become zero, and where: a share of them, or N of every M.

ROUNDING = 1e-9
"""What a product of a count and a ratio may miss a whole number by: 0.29 · 100 is 28.999…"""


@dataclass(frozen=True)
class SparsityPattern:
    """A sparsity.

    Attributes:
        ratio: share of the weights that become zero.
        n: of every ``m`` consecutive weights of a row so many become zero; None where the pattern is free.
        m: see ``n``.
    """

    ratio: float
    n: int | None = None
    m: int | None = None

    def __str__(self) -> str:
        return f"{self.ratio:.0%}" if self.n is None else f"{self.n}:{self.m}"

    def count(self, weights: int) -> int:
        """How many of a number of weights that are compared with each other become zero."""
        return math.floor(weights * self.ratio + ROUNDING)

    def check_width(self, width: int, name: str) -> None:
        """Make sure that a matrix can have the pattern.

        Args:
            width: inputs of the matrix.
            name: of the matrix, for the message.

        Raises:
            ValueError: its rows do not divide into parts of ``m``, or no weight of a row would become zero.
        """
        if self.m is not None and width % self.m:
            raise ValueError(
                f"{name} has {width} inputs, which {self.m} does not divide, so that it cannot be {self}-sparse. "
                "Choose an M that divides the width of every layer, or a sparsity without a pattern, such as "
                f"{self.ratio:g}."
            )


def parse_pattern(value: str | float) -> SparsityPattern:
    """Read ``0.5``, ``"50%"`` or ``"2:4"`` (in N:M, N of every M consecutive weights of a row become zero).

    Raises:
        ValueError: it is none of these, or removes nothing or everything.
    """
    text = str(value).strip()
    pair = re.fullmatch(r"(\d+):(\d+)", text)
    if pair:
        n, m = int(pair[1]), int(pair[2])
        if not 0 < n < m:
            raise ValueError(
                f"The sparsity is {text}: of every M consecutive weights of a row N become zero, so that N must be at "
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


# Scores of single weights: what of a matrix matters least.


def magnitude(weight_OI: torch.Tensor) -> torch.Tensor:
    """``|W_ij|``."""
    return weight_OI.abs()


def wanda(weight_OI: torch.Tensor, norms_I: torch.Tensor) -> torch.Tensor:
    """``|W_ij| · ‖X_j‖₂``, with the norm of input feature j over all calibration tokens.

    Source: Wanda (arXiv 2306.11695), Eq. 1.
    """
    return weight_OI.abs() * norms_I
