"""Least squares of the refit: new values of a layer's remaining columns that compensate for the removed ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from loraprune.processes.shared_work import made_of_each

DAMPING_ATTEMPTS = 4
LEAST_RAISED_DAMPING = 1e-4

TOKENS_A_FEATURE = 6
"""Rows per input of a layer below which least squares overfit the sample."""

STRONGER_DAMPING = (0.01, 0.03, 0.1, 0.3, 1.0, 10.0, 100.0)
"""Ridges to choose from if one is chosen."""

OUTPUTS_TRIED = 128
"""Outputs of a layer that ridges are tried on: sums of all outputs with random signs. On average, they keep the ratios
of squared errors (Achlioptas 2003, 10.1016/S0022-0000(03)00025-4)."""

RIDGE_OF_ALL = 0.5
"""Factor from the ridge that suits half of the rows to the one that suits all of them."""


def are_few(rows: int, features: int) -> bool:
    """Whether a repair on this many rows has to be held back; ``features`` is the number of inputs of the layer."""
    return rows < TOKENS_A_FEATURE * features


class NotPositiveDefiniteError(ArithmeticError):
    """A second moment could not be factored even with raised damping."""


def damped_cholesky(moment: torch.Tensor, damping: float) -> tuple[torch.Tensor, float]:
    """Factor a second moment with a ridge, which is raised step by step if it is too weak.

    Args:
        moment: symmetric, shape ``(n, n)``; not modified.
        damping: ridge as a share of the mean diagonal. If no factor exists with it, ten, a hundred and a thousand
            times as much (at least of :data:`LEAST_RAISED_DAMPING`) are tried.

    Returns:
        The lower Cholesky factor ``L`` with ``L·Lᵀ = H + δ·mean diagonal·I``, and the share ``δ`` used.

    Raises:
        NotPositiveDefiniteError: the moment is not finite, its diagonal sums to zero or less, or the thousandfold ridge
            is still too weak.
    """
    mean_diagonal = moment.diagonal().mean()
    if torch.isfinite(mean_diagonal) and mean_diagonal > 0:
        for attempt in range(DAMPING_ATTEMPTS):
            raised = max(damping, LEAST_RAISED_DAMPING) * 10**attempt if attempt else damping
            shifted = moment.clone()
            shifted.diagonal().add_(raised * mean_diagonal)
            factor, info = torch.linalg.cholesky_ex(shifted)
            # Some backends do not report NaN, but it always reaches the diagonal of the factor.
            if info.item() == 0 and torch.isfinite(factor.diagonal()).all():
                return factor, raised
    raise NotPositiveDefiniteError("The second moment of the inputs is not positive definite.")


@dataclass(frozen=True)
class NormalEquations:
    """Equations for the change ``U`` of the columns that stay: ``(H_KK + δI) Uᵀ = missing``.

    Attributes:
        moment: ``H_KK``, shape ``(kept, kept)``.
        missing: ``E[x_K (t − W_K x_K)ᵀ]``, shape ``(kept, out)``.
    """

    moment: torch.Tensor
    missing: torch.Tensor

    def change(self, damping: float) -> torch.Tensor:
        """Return ``Uᵀ``, shape ``(kept, out)``, with a ridge as a share of the mean diagonal.

        Raises:
            NotPositiveDefiniteError: no Cholesky factor exists even with a thousandfold damping.
        """
        factor, _ = damped_cholesky(self.moment, damping)
        return torch.cholesky_solve(self.missing, factor)

    def loss(self, change: torch.Tensor) -> float:
        """``E‖t − (W_K + U) x_K‖² − E‖t − W_K x_K‖²``: negative if the change helps."""
        return float((change * (self.moment @ change - 2 * self.missing)).sum(dtype=torch.float64))


def normal_equations(
    weight: torch.Tensor, moment: torch.Tensor, kept: torch.Tensor, cross: torch.Tensor | None = None
) -> NormalEquations:
    """Return the equations of a refit; for the arguments see :func:`refit_columns`.

    Raises:
        NotPositiveDefiniteError: they are not finite.
    """
    moment_kept = moment[kept][:, kept]
    if cross is None:
        missing = _lost(weight, moment, kept)
    else:
        missing = (cross[:, kept] - weight[:, kept] @ moment_kept).T
    if not torch.isfinite(missing).all():
        raise NotPositiveDefiniteError("The second moment of the inputs is not finite.")
    return NormalEquations(moment_kept, missing)


def _lost(weight: torch.Tensor, moment: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    """Contribution of the removed columns, correlated with the remaining inputs: ``H_KD W_Dᵀ``, ``(kept, out)``."""
    dropped = torch.ones(weight.shape[1], dtype=torch.bool, device=weight.device)
    dropped[kept] = False
    return moment[kept][:, dropped] @ weight[:, dropped].T


def steadied(halves: Sequence[NormalEquations], damping: float) -> float | None:
    """Return the ridge with which a fit on one half of the data helps most on the other half.

    Args:
        halves: equations of the two halves.
        damping: smallest ridge, as a share of the mean diagonal.

    Returns:
        ``damping`` or one of :data:`STRONGER_DAMPING`; None if no change is best.

    Raises:
        NotPositiveDefiniteError: a half has no Cholesky factor.
    """
    return _best_ridge(halves, [torch.zeros_like(half.missing) for half in halves], halves, damping)


def _best_ridge(
    halves: Sequence[NormalEquations],
    before: Sequence[torch.Tensor],
    wanted: Sequence[NormalEquations],
    damping: float,
) -> float | None:
    """Ridge with which a change fitted on one half helps most on the other half.

    Args:
        halves: equations to fit, for each half.
        before: changes made already, fitted on each half.
        wanted: equations that measure all changes together, for each half.
        damping: smallest ridge.
    """
    ridges = (None, damping, *(stronger for stronger in STRONGER_DAMPING if stronger > damping))
    tried = [(ridge, half) for ridge in ridges for half in range(len(halves))]

    def lost(number: int) -> float | None:
        """Loss of the fit on one half with one ridge; None if that half has no Cholesky factor."""
        (ridge, half), change = tried[number], before[tried[number][1]]
        try:
            if ridge is not None:
                change = change + halves[half].change(ridge)
        except NotPositiveDefiniteError:
            return None
        return wanted[1 - half].loss(change)

    losses = dict.fromkeys(ridges, 0.0)
    for (ridge, _), loss in zip(tried, made_of_each(len(tried), lost, shared=True), strict=True):
        if loss is None:
            raise NotPositiveDefiniteError("The second moment of half of the inputs is not positive definite.")
        losses[ridge] += loss
    return min(losses, key=lambda ridge: losses[ridge])


def refit_columns(
    weight: torch.Tensor,
    moment: torch.Tensor,
    kept: torch.Tensor,
    damping: float,
    cross: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return the remaining columns of a layer, fitted to come nearest to its output with all columns.

    Solves ``min_V E‖t − V x_K‖² + δ‖V − W_K‖²`` for ``t = W x`` or another target. For ``t = W x`` the solution is
    ``V = W_K + W_D H_DK (H_KK + δI)⁻¹``, where D are the removed columns. The ridge pulls towards the old columns
    rather than zero, so strong damping ends in a cut without a repair.

    Args:
        weight: effective weight before the cut, shape ``(out, in)``, float32.
        moment: second moment ``H`` of the inputs, shape ``(in, in)``, float32.
        kept: positions of the columns that stay, ascending.
        damping: ``δ`` as a share of the mean diagonal of ``H_KK``.
        cross: ``E[t xᵀ]``, shape ``(out, in)``, float32; None means the layer's own output, ``W H``.

    Returns:
        Shape ``(out, kept)``, float32.

    Raises:
        NotPositiveDefiniteError: no Cholesky factor exists even with a thousandfold damping.

    Source: SlimGPT, OSSCAR; the unridged form is ``W H[:,K] (H_KK)⁻¹``.
    """
    return weight[:, kept] + normal_equations(weight, moment, kept, cross).change(damping).T


class Moments(NamedTuple):
    """Moments of a layer's inputs ``x`` and of its target output ``t``.

    Attributes:
        moment: ``E[x xᵀ]``, shape ``(in, in)``, float32.
        rows: number of inputs.
        cross: ``E[t xᵀ]``, shape ``(out, in)``, float32; None if ``t`` is the layer's own output.
        square: ``E‖t‖²``, if ``t`` is another target.
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
    """Refit as :func:`refit_columns` does, but no further than the data support.

    With fewer than :data:`TOKENS_A_FEATURE` rows per input, the ridge is the one that helps most on rows that were
    not used for the fit.

    If the target is not the layer's own output, the change has two parts. One compensates for the removed columns:
    ``H_KD W_Dᵀ`` on the right-hand side. The other compensates for earlier cuts: ``E[x_K (t − W x)ᵀ]``. Each part has
    its own ridge, which is chosen in this way however many rows there are.

    Args:
        weight: effective weight before the cut, shape ``(out, in)``, float32.
        moments: moments of all rows.
        kept: positions of the columns that stay, ascending.
        damping: ridge as a share of the mean diagonal; the smallest one if it is chosen.
        part: returns the moments of some of the rows; not called if nothing is chosen.

    Returns:
        Shape ``(out, kept)``, float32; None if the cut without a repair is best on rows that were not used for the fit.

    Raises:
        NotPositiveDefiniteError: see :func:`refit_columns`.
    """
    rows, few = moments.rows, are_few(moments.rows, weight.shape[1])
    if rows < 2 and (few or moments.cross is not None):
        return None
    if moments.cross is None and not few:
        return refit_columns(weight, moments.moment, kept, damping)
    mixed, parts = _fewer_outputs(weight, (part(slice(0, rows // 2)), part(slice(rows // 2, rows))))
    if moments.cross is None:
        ridge = steadied([normal_equations(mixed, half.moment, kept) for half in parts], damping)
        return None if ridge is None else refit_columns(weight, moments.moment, kept, _of_all(ridge, damping))
    wanted, lost, drift = zip(*(_apart(mixed, half, kept) for half in parts), strict=True)
    none = [torch.zeros_like(half.missing) for half in wanted]
    first = _best_ridge(lost, none, lost, damping)
    made = none if first is None else [half.change(first) for half in lost]
    second = _best_ridge(drift, made, wanted, damping)
    if first is None and second is None:
        return None
    _, own, before = _apart(weight, moments, kept)
    fitted = weight[:, kept]
    if first is not None:
        fitted = fitted + own.change(_of_all(first, damping)).T
    if second is not None:
        fitted = fitted + before.change(_of_all(second, damping)).T
    return fitted


def _fewer_outputs(weight: torch.Tensor, parts: Sequence[Moments]) -> tuple[torch.Tensor, Sequence[Moments]]:
    """Return a layer of at most :data:`OUTPUTS_TRIED` outputs whose errors stand for those of all outputs."""
    outputs = weight.shape[0]
    if outputs <= OUTPUTS_TRIED:
        return weight, parts
    # On the CPU, so that every process and device gets the same signs.
    signs = torch.randint(2, (OUTPUTS_TRIED, outputs), generator=torch.Generator().manual_seed(0))
    mixing = (2 * signs - 1).to(weight) / OUTPUTS_TRIED**0.5
    mixed = [half if half.cross is None else half._replace(cross=mixing @ half.cross) for half in parts]
    return mixing @ weight, mixed


def _of_all(ridge: float, damping: float) -> float:
    """Ridge for all rows, from one that was chosen on half of them; ``damping`` is the lower bound."""
    return max(damping, RIDGE_OF_ALL * ridge)


def _apart(
    weight: torch.Tensor, moments: Moments, kept: torch.Tensor
) -> tuple[NormalEquations, NormalEquations, NormalEquations]:
    """Equations of a refit to another target, and its two parts: removed columns, and earlier cuts."""
    wanted = normal_equations(weight, moments.moment, kept, moments.cross)
    lost = _lost(weight, moments.moment, kept)
    return wanted, NormalEquations(wanted.moment, lost), NormalEquations(wanted.moment, wanted.missing - lost)
