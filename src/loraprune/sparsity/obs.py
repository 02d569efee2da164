"""Optimal brain surgeon, column by column: the columns to the right compensate for the weights that become zero.

Source: SparseGPT (arXiv 2301.00774), Algorithm 1.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from loraprune.calibration.least_squares import damped_cholesky

BLOCK_SIZE = 128
_WIDEST_IN_64_BITS = 16384
"""Largest number of features for which a second moment is inverted in 64 bits: five matrices of 2 GB at this width."""

ColumnChooser = Callable[[torch.Tensor, torch.Tensor, slice], torch.Tensor]
"""Chooses weights to remove in some columns. Arguments: the current values ``(out, columns)``, the square roots of the
diagonal of the inverse of the remaining second moment ``(columns,)``, and the columns. The result is True where a
weight is removed."""


@dataclass(frozen=True)
class Inverse:
    """Inverse of the second moment ``H`` of a layer's inputs, as the updates need it.

    Attributes:
        factor_II: upper triangular ``U`` with ``UᵀU = (H + δI)⁻¹``. ``U_jj²`` is the j-th diagonal entry of the inverse
            of the part of H from column j on.
        dead_I: inputs that are zero on all calibration data.
        damping: δ as a share of the mean diagonal; larger than requested if H was not positive definite.
    """

    factor_II: torch.Tensor
    dead_I: torch.Tensor
    damping: float


def inverse(moment_II: torch.Tensor, damping: float) -> Inverse:
    """Invert a second moment and factor the inverse, in 64 bits unless it is too wide.

    Args:
        moment_II: float32.
        damping: value added to the diagonal, as a share of its mean.

    Raises:
        NotPositiveDefiniteError: even with more damping, the factorization fails.
        NotPositiveDefiniteError: even with more damping there is no factor.
    """
    wide = moment_II.shape[0] > _WIDEST_IN_64_BITS
    moment = moment_II.to(torch.float32 if wide else torch.float64, copy=True)
    diagonal = moment.diagonal()
    dead = diagonal == 0
    # A dead input is independent of all others, whatever its diagonal entry is.
    diagonal[dead] = diagonal[~dead].mean() if bool((~dead).any()) else 1.0
    # With the inputs in reverse order, the inverse of the factor is the factor of the inverse. Inverting and factoring
    # separately would cost twice as much, and fails for some moments that have a factor.
    reversed_moment = moment.flip(0, 1)
    del moment, diagonal
    factor, used = damped_cholesky(reversed_moment, damping)
    del reversed_moment
    identity = torch.eye(len(factor), dtype=factor.dtype, device=factor.device)
    inverted = torch.linalg.solve_triangular(factor, identity, upper=False).flip(0, 1)
    return Inverse(inverted.to(moment_II.dtype), dead, used)


def prune_columns(
    weight_OI: torch.Tensor, inverse: Inverse, choose: ColumnChooser, *, step: int, block_size: int = BLOCK_SIZE
) -> tuple[torch.Tensor, torch.Tensor]:
    """Prune the columns from left to right; the columns to the right compensate for each removed weight.

    Args:
        weight_OI: float32; not modified.
        inverse: inverse of the second moment of the inputs.
        choose: chooses the weights to remove, ``step`` columns at a time, from their updated values.
        step: number of columns chosen from together; divides ``block_size``.
        block_size: number of columns whose updates are applied together to the columns after the block.

    Returns:
        The new weight, and True where a weight was removed, both of the shape of ``weight_OI``.
    """
    weight = weight_OI.masked_fill(inverse.dead_I, 0.0)
    removed = torch.zeros_like(weight, dtype=torch.bool)
    width = weight.shape[1]
    for start in range(0, width, block_size):
        end = min(start + block_size, width)
        block = weight[:, start:end]
        factor = inverse.factor_II[start:end, start:end]
        roots = factor.diagonal()
        errors = torch.zeros_like(block)
        for column in range(end - start):
            if column % step == 0:
                part = slice(column, min(column + step, end - start))
                columns = slice(start + part.start, start + part.stop)
                removed[:, columns] = choose(block[:, part], roots[part], columns)
            # Only removed weights have an error.
            error = torch.where(removed[:, start + column], block[:, column] / roots[column], 0.0)
            block[:, column:] -= error[:, None] * factor[column, column:]
            errors[:, column] = error
        weight[:, end:] -= errors @ inverse.factor_II[start:end, end:]
    return weight.masked_fill_(removed, 0.0), removed


def mask_error(change_OI: torch.Tensor, moment_II: torch.Tensor) -> torch.Tensor:
    """``E (Δw·x)²`` for each row of a change of the weight, shape ``(out,)``."""
    return ((change_OI @ moment_II) * change_OI).sum(1)


def better_rows(
    weight_OI: torch.Tensor, updated_OI: torch.Tensor, removed_OI: torch.Tensor, moment_II: torch.Tensor
) -> torch.Tensor:
    """Take the better version of each row: with updates, or with the original values and the same zeros.

    The update of a column relies on all columns to its right, including those removed later, so the result can be worse
    than no update.
    """
    plain = weight_OI.masked_fill(removed_OI, 0.0)
    worse = mask_error(updated_OI - weight_OI, moment_II) > mask_error(plain - weight_OI, moment_II)
    return torch.where(worse[:, None], plain, updated_OI)
