"""The least squares behind the refit: columns of a layer that make up for those that go."""

from __future__ import annotations

import torch

DAMPING_ATTEMPTS = 4
LEAST_RAISED_DAMPING = 1e-4


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
    moment_kept = moment[kept][:, kept]
    if cross is None:
        dropped = torch.ones(weight.shape[1], dtype=torch.bool, device=weight.device)
        dropped[kept] = False
        missing = moment[kept][:, dropped] @ weight[:, dropped].T  # (kept, out)
    else:
        missing = (cross[:, kept] - weight[:, kept] @ moment_kept).T
    if not torch.isfinite(missing).all():
        raise NotPositiveDefiniteError("The second moment of the inputs is not finite.")
    factor, _ = damped_cholesky(moment_kept, damping)
    return weight[:, kept] + torch.cholesky_solve(missing, factor).T
