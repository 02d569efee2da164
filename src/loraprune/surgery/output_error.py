"""Output error of a layer after a cut, before and after its repair, from second moments of its inputs."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass(frozen=True, kw_only=True)
class OutputError:
    """Mean squared norms of a layer's output over its inputs.

    Attributes:
        wanted: mean squared norm of the target output.
        cut: that of its difference from the output of the remaining columns without a repair.
        repaired: that of its difference from their output after the repair; None without one.
    """

    wanted: float
    cut: float
    repaired: float | None = None

    def __add__(self, other: OutputError) -> OutputError:
        """Combine two layers; one without a repair counts with its cut if the other has a repair."""
        repaired = None
        if self.repaired is not None or other.repaired is not None:
            repaired = sum(part.cut if part.repaired is None else part.repaired for part in (self, other))
        return OutputError(wanted=self.wanted + other.wanted, cut=self.cut + other.cut, repaired=repaired)

    def times(self, weight: float) -> OutputError:
        """Return the error counted ``weight`` times."""
        repaired = None if self.repaired is None else weight * self.repaired
        return OutputError(wanted=weight * self.wanted, cut=weight * self.cut, repaired=repaired)


@dataclass(frozen=True, kw_only=True)
class ConsumerError:
    """Relative error that a cut causes in the output of one consumer.

    Attributes:
        dimension: name of the dimension that was cut.
        kind: kind of that dimension.
        layer: layer of that dimension.
        cut: ``‖t − W_K x_K‖ / ‖t‖`` over the calibration data. ``t`` is ``W x``, the output of the uncut layer on its
            current inputs; for the repair ``stream`` it restores the residual stream of the uncut model.
        repaired: same error after the repair; None if there was none.
    """

    dimension: str
    kind: str
    layer: int
    cut: float
    repaired: float | None = None


Noted = Callable[[ConsumerError], None]
"""Receives the error of each consumer."""


def relative(error: OutputError) -> tuple[float, float | None] | None:
    """Errors of the cut and of its repair as shares of the target output; None if they are not finite numbers."""
    if not (math.isfinite(error.wanted) and math.isfinite(error.cut) and error.wanted > 0.0):
        return None
    if error.repaired is None or not math.isfinite(error.repaired):
        return _share(error.cut, error.wanted), None
    return _share(error.cut, error.wanted), _share(error.repaired, error.wanted)


def _share(part: float, whole: float) -> float:
    # Rounding may leave a difference of zero slightly negative.
    return math.sqrt(max(0.0, part) / whole)


def _inner(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a * b).sum(dtype=torch.float64))


@torch.no_grad()
def output_error(
    weight: torch.Tensor, moment: torch.Tensor, kept: torch.Tensor, repaired: torch.Tensor | None
) -> OutputError:
    """Error of a layer relative to its output with all columns: ``E‖D x‖² = tr(D H Dᵀ)`` for ``D = W − V``.

    With R the removed columns and ``U = V − W_K``, the error of the cut is ``tr(W_R H_RR W_Rᵀ)``, to which the repair
    adds ``− 2 ⟨W_R H_RK, U⟩ + ⟨U H_KK, U⟩``. It costs about as much as solving for the columns.

    Args:
        weight: effective weight before the cut, shape ``(out, in)``, float32.
        moment: second moment ``H`` of its inputs, shape ``(in, in)``, float32.
        kept: positions of the columns that stay.
        repaired: those columns after the repair, ``V``, shape ``(out, kept)``; None without one.
    """
    gone = torch.ones(weight.shape[1], dtype=torch.bool, device=weight.device)
    gone[kept] = False
    kept_OK, gone_OR = weight[:, kept], weight[:, gone]
    moment_KK, moment_RI = moment[kept][:, kept], moment[gone]
    cross_OK = gone_OR @ moment_RI[:, kept]
    cut = _inner(gone_OR @ moment_RI[:, gone], gone_OR)
    wanted = cut + 2 * _inner(cross_OK, kept_OK) + _inner(kept_OK @ moment_KK, kept_OK)
    if repaired is None:
        return OutputError(wanted=wanted, cut=cut)
    change = repaired - kept_OK
    left = cut - 2 * _inner(cross_OK, change) + _inner(change @ moment_KK, change)
    return OutputError(wanted=wanted, cut=cut, repaired=left)


@torch.no_grad()
def target_error(
    weight: torch.Tensor,
    moment: torch.Tensor,
    kept: torch.Tensor,
    repaired: torch.Tensor | None,
    cross: torch.Tensor,
    square: float,
) -> OutputError:
    """Error relative to another target ``t``: ``E‖t − V x_K‖² = E‖t‖² − 2 ⟨E[t x_Kᵀ], V⟩ + ⟨V H_KK, V⟩``.

    Args:
        weight: effective weight before the cut, shape ``(out, in)``, float32.
        moment: second moment ``H`` of its inputs, shape ``(in, in)``, float32.
        kept: positions of the columns that stay.
        repaired: those columns after the repair, ``V``, shape ``(out, kept)``; None without one.
        cross: ``E[t xᵀ]``, shape ``(out, in)``.
        square: ``E‖t‖²``.
    """
    moment_KK, cross_OK = moment[kept][:, kept], cross[:, kept]

    def left(columns: torch.Tensor) -> float:
        return square - 2 * _inner(cross_OK, columns) + _inner(columns @ moment_KK, columns)

    return OutputError(wanted=square, cut=left(weight[:, kept]), repaired=None if repaired is None else left(repaired))
