"""The methods by name: from a matrix and what is known of its inputs to a sparse matrix."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Literal, get_args

import torch

from loraprune.sparsity import masks
from loraprune.sparsity.masks import (
    SparsityPattern,
    lowest_of_matrix,
    lowest_of_parts,
    lowest_of_rows,
    lowest_of_rows_by_share,
)
from loraprune.sparsity.obs import BLOCK_SIZE, ColumnChooser, better_rows, inverse, mask_error, prune_columns

if TYPE_CHECKING:
    from loraprune.calibration.features import FeatureStatistics

Method = Literal["magnitude", "wanda", "sparsegpt", "magnitude+obs", "wanda+obs"]
METHODS: tuple[str, ...] = get_args(Method)
Order = Literal["sequential", "iterative"]
ORDERS: tuple[str, ...] = get_args(Order)


Within = Literal["row", "matrix"]
WITHIN: tuple[str, ...] = get_args(Within)
_MASKS = {"row": lowest_of_rows, "matrix": lowest_of_matrix}


class Evidence(Enum):
    """What a method looks at beside the weights."""

    NOTHING = "nothing"
    NORMS = "norms of the input features"
    MOMENT = "the second moment of the inputs"


def evidence_of(method: str) -> Evidence:
    """What a method looks at."""
    if method == "magnitude":
        return Evidence.NOTHING
    return Evidence.NORMS if method == "wanda" else Evidence.MOMENT


@dataclass(frozen=True, kw_only=True)
class SparsityOptions:
    """How a matrix is made sparse.

    Attributes:
        method: ``magnitude`` (weights of a matrix compared with each other), ``wanda`` (of a row), ``sparsegpt`` (of a
            block of columns, with updates of the others), and the masks of the first two with SparseGPT's updates.
        pattern: how many, and where.
        within: what weights are compared with, ``row`` or ``matrix``; None is the method's own: the matrix for
            ``magnitude``, the row for ``wanda``.
        variant: of ``wanda``: rows lose the same share of their scores instead of the same number of weights.
        order: of the masks with updates: ``sequential`` chooses all at once, before any update; ``iterative`` block
            by block of columns, on the weights as they are by then.
        damping: of the updates, as a share of the mean diagonal of the second moment.
        block_size: columns that are compared with each other, and updated together.
    """

    method: str
    pattern: SparsityPattern
    within: str | None = None
    variant: bool = False
    order: str = "sequential"
    damping: float = 0.01
    block_size: int = BLOCK_SIZE

    @property
    def compared_within(self) -> str:
        """What the weights of a whole mask are compared with."""
        return self.within or ("matrix" if self.method.startswith("magnitude") else "row")


@dataclass(frozen=True, kw_only=True)
class SparseMatrix:
    """A matrix that was made sparse.

    Attributes:
        weight_OI: float32.
        removed_OI: True where a weight was chosen to go.
        error: squared error of the outputs on the calibration data, as a share of the squared outputs; None where the
            second moment is not known.
        damping: that the updates needed; None without updates.
    """

    weight_OI: torch.Tensor
    removed_OI: torch.Tensor
    error: float | None = None
    damping: float | None = None


def sparsify(weight_OI: torch.Tensor, inputs: FeatureStatistics | None, options: SparsityOptions) -> SparseMatrix:
    """Make a matrix sparse.

    Args:
        weight_OI: float32; not changed.
        inputs: what is known of its inputs: see :func:`evidence_of`.
        options: how.

    Raises:
        NotPositiveDefiniteError: the second moment cannot be inverted, even with more damping.
    """
    if evidence_of(options.method) is not Evidence.MOMENT:
        removed = _whole_mask(weight_OI, inputs, options)
        return SparseMatrix(weight_OI=weight_OI.masked_fill(removed, 0.0), removed_OI=removed)
    assert inputs is not None
    return _with_updates(weight_OI, inputs, options)


def compared_weights(rows: int, width: int, options: SparsityOptions) -> int:
    """How many weights of a matrix ``(rows, width)`` are compared with each other, where the pattern is free."""
    if options.method == "sparsegpt" or (options.method.endswith("+obs") and options.order == "iterative"):
        return rows * min(width, options.block_size)
    by_row = options.compared_within == "row" and not options.variant
    return width if by_row else rows * width


def _whole_mask(weight_OI: torch.Tensor, inputs: FeatureStatistics | None, options: SparsityOptions) -> torch.Tensor:
    """The mask of ``magnitude`` and ``wanda``."""
    choose = _MASKS[options.compared_within]
    if options.method.startswith("magnitude"):
        return choose(masks.magnitude(weight_OI), options.pattern)
    assert inputs is not None
    importance = masks.wanda(weight_OI, inputs.norms.to(weight_OI.dtype))
    if options.variant:
        return lowest_of_rows_by_share(importance, options.pattern.ratio)
    return choose(importance, options.pattern)


def _with_updates(weight_OI: torch.Tensor, inputs: FeatureStatistics, options: SparsityOptions) -> SparseMatrix:
    moment = inputs.moment
    inverted = inverse(moment, options.damping)
    part = options.pattern.m
    block_size = options.block_size if part is None else math.ceil(options.block_size / part) * part
    choose = _chooser(weight_OI, inputs, options)
    updated, removed = prune_columns(
        weight_OI, inverted, choose, step=block_size if part is None else part, block_size=block_size
    )
    updated = better_rows(weight_OI, updated, removed | inverted.dead_I, moment)
    error = float(mask_error(updated - weight_OI, moment).sum())
    size = float(mask_error(weight_OI, moment).sum())
    return SparseMatrix(
        weight_OI=updated,
        removed_OI=removed,
        error=error / size if size > 0 else 0.0,
        damping=inverted.damping,
    )


def _chooser(weight_OI: torch.Tensor, inputs: FeatureStatistics, options: SparsityOptions) -> ColumnChooser:
    pattern = options.pattern
    choose = lowest_of_matrix if pattern.m is None else lowest_of_parts
    if options.method == "sparsegpt":
        return lambda weight, roots, columns: choose((weight / roots).square(), pattern)
    if options.order == "sequential":
        whole = _whole_mask(weight_OI, inputs, options)
        return lambda weight, roots, columns: whole[:, columns]
    if options.method == "magnitude+obs":
        return lambda weight, roots, columns: choose(masks.magnitude(weight), pattern)
    norms = inputs.norms.to(weight_OI.dtype)
    return lambda weight, roots, columns: choose(masks.wanda(weight, norms[columns]), pattern)
