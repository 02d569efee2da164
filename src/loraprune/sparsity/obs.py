"""Optimal brain surgeon, column by column: the weights to the right make up for those that become zero.

Source: SparseGPT (arXiv 2301.00774), Algorithm 1.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from loraprune.calibration.least_squares import damped_cholesky

BLOCK_SIZE = 128
_WIDEST_IN_64_BITS = 16384
"""Features up to which a second moment is inverted in 64 bits: five matrices of 2 GB at this width."""

ColumnChooser = Callable[[torch.Tensor, torch.Tensor, slice], torch.Tensor]
"""Chooses weights of some columns that go: from their present values ``(out, columns)``, the square roots of the
diagonal of the inverse of what is left of the second moment ``(columns,)``, and which columns those are; True where a
weight goes."""


@dataclass(frozen=True)
class Inverse:
    """What the updates need of the second moment ``H`` of a layer's inputs.

    Attributes:
        factor_II: upper triangular ``U`` with ``UᵀU = (H + δI)⁻¹``. ``U_jj²`` is the j-th diagonal entry of the inverse
            of the part of H from column j on.
        dead_I: inputs that are zero on all calibration data.
        damping: δ as a share of the mean diagonal: more than was asked for where H was not positive definite.
    """

    factor_II: torch.Tensor
    dead_I: torch.Tensor
    damping: float


def inverse(moment_II: torch.Tensor, damping: float) -> Inverse:
    """Invert a second moment and factor the inverse, in 64 bits where it is not too wide for that.

    Args:
        moment_II: float32.
        damping: added to the diagonal, as a share of its mean.

    Raises:
        NotPositiveDefiniteError: even with more damping there is no factor.
    """
    wide = moment_II.shape[0] > _WIDEST_IN_64_BITS
    moment = moment_II.to(torch.float32 if wide else torch.float64, copy=True)
    diagonal = moment.diagonal()
    dead = diagonal == 0
    # A dead input is independent of all others, whatever stands on its diagonal.
    diagonal[dead] = diagonal[~dead].mean() if bool((~dead).any()) else 1.0
    # With the inputs in reverse order the inverse of the factor is the factor of the inverse. To invert and to factor
    # once more would cost as much again, and fails for some moments that have a factor.
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
    """Go through the columns from left to right: a weight that goes is made up for by the columns to its right.

    Args:
        weight_OI: float32; not changed.
        inverse: of the second moment of the inputs.
        choose: chooses what goes, ``step`` columns at a time, on the values that they have by then.
        step: columns that are chosen from at once; divides ``block_size``.
        block_size: columns whose updates reach the columns behind the block together.

    Returns:
        The new weight, and True where a weight went, both of the shape of ``weight_OI``.
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
            # Nothing but what goes has an error.
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
    """Of each row the better one: updated, or as it was with zeros in the same places.

    The update of a column counts on all columns to its right, also on those that go later, so that it can end worse
    than no update.
    """
    plain = weight_OI.masked_fill(removed_OI, 0.0)
    worse = mask_error(updated_OI - weight_OI, moment_II) > mask_error(plain - weight_OI, moment_II)
    return torch.where(worse[:, None], plain, updated_OI)
