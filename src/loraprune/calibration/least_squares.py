"""The least squares behind the refit: columns of a layer that make up for those that go."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

DAMPING_ATTEMPTS = 4
LEAST_RAISED_DAMPING = 1e-4

TOKENS_A_FEATURE = 6
"""Below so many rows for each input of a layer, least squares fit the sample rather than the layer."""

STRONGER_DAMPING = (0.01, 0.1, 1.0, 10.0, 100.0)
"""Ridges that are tried then."""


def are_few(rows: int, features: int) -> bool:
    """Whether a repair on so many rows has to be held back; ``features`` are the inputs of the layer."""
    return rows < TOKENS_A_FEATURE * features


class NotPositiveDefiniteError(ArithmeticError):
    """A second moment could not be factored even with raised damping."""


def damped_cholesky(moment: torch.Tensor, damping: float) -> tuple[torch.Tensor, float]:
    """Factor of a second moment with a ridge, which is raised step by step where it is too weak.

    Args:
        moment: symmetric, shape ``(n, n)``; left as it is.
        damping: ridge as a share of the mean diagonal. Where no factor exists with it, ten, a hundred and a thousand
            times as much (of at least :data:`LEAST_RAISED_DAMPING`) are tried.

    Returns:
        The lower Cholesky factor ``L`` with ``L·Lᵀ = H + δ·mean diagonal·I``, and the share ``δ`` that it took.

    Raises:
        NotPositiveDefiniteError: the moment is not finite, its diagonal adds up to nothing, or the thousandfold ridge
            is still too weak.
    """
    mean_diagonal = moment.diagonal().mean()
    if torch.isfinite(mean_diagonal) and mean_diagonal > 0:
        for attempt in range(DAMPING_ATTEMPTS):
            raised = max(damping, LEAST_RAISED_DAMPING) * 10**attempt if attempt else damping
            shifted = moment.clone()
            shifted.diagonal().add_(raised * mean_diagonal)
            factor, info = torch.linalg.cholesky_ex(shifted)
            # Some backends let NaN pass without a word; it always reaches the diagonal of the factor.
            if info.item() == 0 and torch.isfinite(factor.diagonal()).all():
                return factor, raised
    raise NotPositiveDefiniteError("The second moment of the inputs is not positive definite.")


@dataclass(frozen=True)
class NormalEquations:
    """What least squares know of the columns that stay: ``(H_KK + δI) Uᵀ = missing`` for their change ``U``.

    Attributes:
        moment: ``H_KK``, shape ``(kept, kept)``.
        missing: ``E[x_K (t − W_K x_K)ᵀ]``, shape ``(kept, out)``.
    """

    moment: torch.Tensor
    missing: torch.Tensor

    def change(self, damping: float) -> torch.Tensor:
        """``Uᵀ``, shape ``(kept, out)``, with a ridge as a share of the mean diagonal.

        Raises:
            NotPositiveDefiniteError: no Cholesky factor exists even with the damping raised a thousandfold.
        """
        factor, _ = damped_cholesky(self.moment, damping)
        return torch.cholesky_solve(self.missing, factor)

    def loss(self, change: torch.Tensor) -> float:
        """``E‖t − (W_K + U) x_K‖² − E‖t − W_K x_K‖²``: below zero where the change helps."""
        return float((change * (self.moment @ change - 2 * self.missing)).sum(dtype=torch.float64))


def normal_equations(
    weight: torch.Tensor, moment: torch.Tensor, kept: torch.Tensor, cross: torch.Tensor | None = None
) -> NormalEquations:
    """The equations of a refit; for the arguments see :func:`refit_columns`.

    Raises:
        NotPositiveDefiniteError: they are not finite.
    """
    moment_kept = moment[kept][:, kept]
    if cross is None:
        dropped = torch.ones(weight.shape[1], dtype=torch.bool, device=weight.device)
        dropped[kept] = False
        missing = moment[kept][:, dropped] @ weight[:, dropped].T  # (kept, out)
    else:
        missing = (cross[:, kept] - weight[:, kept] @ moment_kept).T
    if not torch.isfinite(missing).all():
        raise NotPositiveDefiniteError("The second moment of the inputs is not finite.")
    return NormalEquations(moment_kept, missing)


def steadied(halves: Sequence[NormalEquations], damping: float) -> float | None:
    """The ridge under which what is fitted on one half of the data helps most on the other half.

    Args:
        halves: equations of the two halves.
        damping: the least ridge, as a share of the mean diagonal.

    Returns:
        ``damping`` or one of :data:`STRONGER_DAMPING`; None where no change at all does best.

    Raises:
        NotPositiveDefiniteError: a half has no Cholesky factor.
    """
    first, second = halves
    losses: dict[float | None, float] = {None: 0.0}
    for ridge in (damping, *(stronger for stronger in STRONGER_DAMPING if stronger > damping)):
        losses[ridge] = second.loss(first.change(ridge)) + first.loss(second.change(ridge))
    return min(losses, key=lambda ridge: losses[ridge])


def refit_columns(
    weight: torch.Tensor,
    moment: torch.Tensor,
    kept: torch.Tensor,
    damping: float,
    cross: torch.Tensor | None = None,
) -> torch.Tensor:
    """Columns of a layer that, on their own, come nearest to what the layer computed with all of its columns.

    Solves ``min_V E‖t − V x_K‖² + δ‖V − W_K‖²`` with ``t = W x``, whose solution is
    ``V = W_K + W_D H_DK (H_KK + δI)⁻¹`` with D the columns that go; or with another target ``t``. The ridge pulls
    towards the old columns, not towards zero, so that strong damping ends in the plain cut.

    Args:
        weight: effective weight before the cut, shape ``(out, in)``, float32.
        moment: second moment ``H`` of the inputs, shape ``(in, in)``, float32.
        kept: positions of the columns that stay, ascending.
        damping: ``δ`` as a share of the mean diagonal of ``H_KK``.
        cross: ``E[t xᵀ]``, shape ``(out, in)``, float32; None is what the layer itself computes, ``W H``.

    Returns:
        Shape ``(out, kept)``, float32.

    Raises:
        NotPositiveDefiniteError: no Cholesky factor exists even with the damping raised a thousandfold.

    Source: SlimGPT, OSSCAR; the unridged form is ``W H[:,K] (H_KK)⁻¹``.
    """
    return weight[:, kept] + normal_equations(weight, moment, kept, cross).change(damping).T


class Moments(NamedTuple):
    """What is known of a layer's inputs ``x`` and of what it should give, ``t``.

    Attributes:
        moment: ``E[x xᵀ]``, shape ``(in, in)``, float32.
        rows: how many inputs there were.
        cross: ``E[t xᵀ]``, shape ``(out, in)``, float32; None where ``t`` is what the layer itself computes.
        square: ``E‖t‖²``, where ``t`` is something else.
    """

    moment: torch.Tensor
    rows: int
    cross: torch.Tensor | None = None
    square: float = 0.0


def held_back_columns(
    weight: torch.Tensor,
    moments: Moments,
    kept: torch.Tensor,
    damping: float,
    part: Callable[[slice], Moments],
) -> torch.Tensor | None:
    """:func:`refit_columns`; with fewer than :data:`TOKENS_A_FEATURE` rows for each input no further than these bear.

    Args:
        weight: effective weight before the cut, shape ``(out, in)``, float32.
        moments: of all rows.
        kept: positions of the columns that stay, ascending.
        damping: ridge as a share of the mean diagonal, the least one where there are few rows.
        part: gives the moments of some of the rows; not called where there are enough of them.

    Returns:
        Shape ``(out, kept)``, float32; None where the plain cut does best on rows that were not fitted on.

    Raises:
        NotPositiveDefiniteError: see :func:`refit_columns`.
    """
    rows = moments.rows
    if are_few(rows, weight.shape[1]):
        if rows < 2:
            return None
        parts = (part(slice(0, rows // 2)), part(slice(rows // 2, rows)))
        ridge = steadied([normal_equations(weight, half.moment, kept, half.cross) for half in parts], damping)
        if ridge is None:
            return None
        damping = ridge
    return refit_columns(weight, moments.moment, kept, damping, moments.cross)
