"""How far a cut takes a layer from what it gave, before and after its repair: from second moments of its inputs."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass(frozen=True, kw_only=True)
class OutputError:
    """Mean squared norms of a layer's output over its inputs.

    Attributes:
        wanted: of what the layer should give.
        cut: of its difference from what the columns that stay give as they were.
        repaired: of its difference from what they give after the repair; None without one.
    """

    wanted: float
    cut: float
    repaired: float | None = None

    def __add__(self, other: OutputError) -> OutputError:
        """The two layers as one; one without a repair stays at its cut where the other has one."""
        repaired = None
        if self.repaired is not None or other.repaired is not None:
            repaired = sum(part.cut if part.repaired is None else part.repaired for part in (self, other))
        return OutputError(wanted=self.wanted + other.wanted, cut=self.cut + other.cut, repaired=repaired)

    def times(self, weight: float) -> OutputError:
        """The same counted ``weight`` times."""
        repaired = None if self.repaired is None else weight * self.repaired
        return OutputError(wanted=weight * self.wanted, cut=weight * self.cut, repaired=repaired)


@dataclass(frozen=True, kw_only=True)
class ConsumerError:
    """What a cut did to the output of one consumer, relative to what it should give.

    Attributes:
        dimension: name of the dimension that was cut; ``kind`` and ``layer``: its.
        cut: ``‖t − W_K x_K‖ / ‖t‖`` over the calibration data. ``t`` is ``W x``, what the layer gave on its inputs as
            they are now; of the repair ``stream`` it is what makes up the residual stream of the uncut model.
        repaired: the same after the repair; None where there was none.
    """

    dimension: str
    kind: str
    layer: int
    cut: float
    repaired: float | None = None


Noted = Callable[[ConsumerError], None]
"""Told of the error of each consumer."""


def relative(error: OutputError) -> tuple[float, float | None] | None:
    """Errors of the cut and of its repair as shares of the wanted output; None where these are no numbers."""
    if not (math.isfinite(error.wanted) and math.isfinite(error.cut) and error.wanted > 0.0):
        return None
    if error.repaired is None or not math.isfinite(error.repaired):
        return _share(error.cut, error.wanted), None
    return _share(error.cut, error.wanted), _share(error.repaired, error.wanted)


def _share(part: float, whole: float) -> float:
    # Rounding may leave a difference of nothing below zero.
    return math.sqrt(max(0.0, part) / whole)


def _inner(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a * b).sum(dtype=torch.float64))


@torch.no_grad()
def output_error(
    weight: torch.Tensor, moment: torch.Tensor, kept: torch.Tensor, repaired: torch.Tensor | None
) -> OutputError:
    """Error of a layer against what it gave with all of its columns: ``E‖D x‖² = tr(D H Dᵀ)`` for ``D = W − V``.

    With R the columns that go and ``U = V − W_K``: ``tr(W_R H_RR W_Rᵀ)`` for the cut, and for the repair
    ``− 2 ⟨W_R H_RK, U⟩ + ⟨U H_KK, U⟩`` more. It costs about as much as solving for the columns.

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
    """Error against another target ``t``: ``E‖t − V x_K‖² = E‖t‖² − 2 ⟨E[t x_Kᵀ], V⟩ + ⟨V H_KK, V⟩``.

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
