"""From a matrix and the statistics of its inputs to a sparse matrix."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from loraprune.sparsity import masks
from loraprune.sparsity.configs import MagnitudeMask, MaskWithUpdates, WandaMask, WholeMask, WithUpdates, ZeroingMethod
from loraprune.sparsity.masks import lowest_of_matrix, lowest_of_parts, lowest_of_rows, lowest_of_rows_by_share
from loraprune.sparsity.obs import ColumnChooser, better_rows, inverse, mask_error, prune_columns

if TYPE_CHECKING:
    from loraprune.calibration.features import FeatureStatistics
    from loraprune.sparsity.pattern import SparsityPattern

_MASKS = {"row": lowest_of_rows, "matrix": lowest_of_matrix}


@dataclass(frozen=True, kw_only=True)
class SparseMatrix:
    """A matrix that was made sparse.

    Attributes:
        weight_OI: sparse weight, float32.
        removed_OI: True where a weight was removed.
        error: squared error of the outputs on the calibration data, as a share of the squared outputs; None if the
            second moment is unknown.
        damping: damping that the updates needed; None without updates.
    """

    weight_OI: torch.Tensor
    removed_OI: torch.Tensor
    error: float | None = None
    damping: float | None = None


def sparsify(
    weight_OI: torch.Tensor, inputs: FeatureStatistics | None, method: ZeroingMethod, pattern: SparsityPattern
) -> SparseMatrix:
    """Make a matrix sparse.

    Args:
        weight_OI: float32; not modified.
        inputs: statistics of its inputs, as the method's ``evidence`` requires.
        method: method and its options.
        pattern: number and positions of the weights that become zero.

    Raises:
        NotPositiveDefiniteError: the second moment cannot be inverted, even with more damping.
    """
    if isinstance(method, WithUpdates):
        assert inputs is not None
        return _with_updates(weight_OI, inputs, method, pattern)
    assert isinstance(method, WholeMask)
    removed = _whole_mask(weight_OI, inputs, method, pattern)
    return SparseMatrix(weight_OI=weight_OI.masked_fill(removed, 0.0), removed_OI=removed)


def _whole_mask(
    weight_OI: torch.Tensor, inputs: FeatureStatistics | None, method: WholeMask, pattern: SparsityPattern
) -> torch.Tensor:
    """Return the mask of ``magnitude`` or ``wanda``."""
    choose = _MASKS[method.compared_within]
    if isinstance(method, MagnitudeMask):
        return choose(masks.magnitude(weight_OI), pattern)
    assert inputs is not None
    importance = masks.wanda(weight_OI, inputs.norms.to(weight_OI.dtype))
    if isinstance(method, WandaMask) and method.variant:
        return lowest_of_rows_by_share(importance, pattern.ratio)
    return choose(importance, pattern)


def _with_updates(
    weight_OI: torch.Tensor, inputs: FeatureStatistics, method: WithUpdates, pattern: SparsityPattern
) -> SparseMatrix:
    moment = inputs.moment
    inverted = inverse(moment, method.damping)
    part = pattern.m
    block_size = method.block_size if part is None else math.ceil(method.block_size / part) * part
    choose = _chooser(weight_OI, inputs, method, pattern)
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


def _chooser(
    weight_OI: torch.Tensor, inputs: FeatureStatistics, method: WithUpdates, pattern: SparsityPattern
) -> ColumnChooser:
    choose = lowest_of_matrix if pattern.m is None else lowest_of_parts
    if not isinstance(method, MaskWithUpdates):
        return lambda weight, roots, columns: choose((weight / roots).square(), pattern)
    if method.order == "sequential":
        whole = _whole_mask(weight_OI, inputs, method.mask(method.within), pattern)
        return lambda weight, roots, columns: whole[:, columns]
    if method.mask is MagnitudeMask:
        return lambda weight, roots, columns: choose(masks.magnitude(weight), pattern)
    norms = inputs.norms.to(weight_OI.dtype)
    return lambda weight, roots, columns: choose(masks.wanda(weight, norms[columns]), pattern)
