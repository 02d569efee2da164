"""Least-squares repair of the layer that consumed what a cut took away."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn

from loraprune.adapters import effective_weight, lora_delta
from loraprune.inference import inference_mode
from loraprune.layerwise import LayerwisePass
from loraprune.slicing import slice_, slice_dimension_
from loraprune.wrapping import base_layer, base_model

if TYPE_CHECKING:
    from loraprune.plan import Plan
    from loraprune.structure import PrunableDimension, Structure

DAMPING_ATTEMPTS = 4
LEAST_RAISED_DAMPING = 1e-4


class NotPositiveDefiniteError(ArithmeticError):
    """A second moment could not be factored even with raised damping."""


def refit_columns(weight: torch.Tensor, moment: torch.Tensor, kept: torch.Tensor, damping: float) -> torch.Tensor:
    """Columns of a layer that, on their own, come nearest to what the layer computed with all of its columns.

    Solves ``min_V E‖W x − V x_K‖² + δ‖V − W_K‖²``, whose solution is ``V = W_K + W_D H_DK (H_KK + δI)⁻¹`` with D the
    columns that go. The ridge pulls towards the old columns, not towards zero, so that strong damping ends in the
    plain cut.

    Args:
        weight: effective weight before the cut, shape ``(out, in)``, float32.
        moment: second moment ``H`` of the inputs, shape ``(in, in)``, float32.
        kept: positions of the columns that stay, ascending.
        damping: ``δ`` as a share of the mean diagonal of ``H_KK``.

    Returns:
        Shape ``(out, kept)``, float32.

    Raises:
        NotPositiveDefiniteError: no Cholesky factor exists even with the damping raised a thousandfold.

    Source: SlimGPT, OSSCAR; the unridged form is ``W H[:,K] (H_KK)⁻¹``.
    """
    dropped = torch.ones(weight.shape[1], dtype=torch.bool, device=weight.device)
    dropped[kept] = False
    moment_kept = moment[kept][:, kept]
    cross = moment[kept][:, dropped] @ weight[:, dropped].T  # (kept, out)
    mean_diagonal = moment_kept.diagonal().mean()
    if torch.isfinite(mean_diagonal) and mean_diagonal > 0 and torch.isfinite(cross).all():
        for attempt in range(DAMPING_ATTEMPTS):
            shifted = moment_kept.clone()
            raised = max(damping, LEAST_RAISED_DAMPING) * 10**attempt if attempt else damping
            shifted.diagonal().add_(raised * mean_diagonal)
            factor, info = torch.linalg.cholesky_ex(shifted)
            if info.item() == 0:
                return weight[:, kept] + torch.cholesky_solve(cross, factor).T
    raise NotPositiveDefiniteError("The second moment of the inputs is not positive definite.")


@torch.no_grad()
def _set_effective_weight_(module: nn.Module, weight: torch.Tensor) -> None:
    """Choose the base weight so that base and adapter together make ``weight``; the adapter stays as it is."""
    delta = lora_delta(module)
    base = base_layer(module).weight
    base.data.copy_(weight if delta is None else weight - delta)


@torch.no_grad()
def _cut_and_refit_(
    model: nn.Module,
    dimension: PrunableDimension,
    positions: Sequence[int],
    num_groups: int,
    moment: torch.Tensor,
    damping: float,
    optimizer: object | None,
) -> None:
    """Cut one dimension and refit its consumer; where no refit is possible, warn and leave the plain cut."""
    consumer = base_model(model).get_submodule(dimension.consumer.module)
    before = effective_weight(consumer)
    columns = dimension.consumer.positions(torch.as_tensor(positions), num_groups, before.shape[1]).to(before.device)
    try:
        after = refit_columns(before, moment, columns, damping)
    except NotPositiveDefiniteError:
        warnings.warn(
            f"{dimension.name}: no refit, since the second moment of its inputs is not positive definite. The cut "
            "is made without it. More calibration sequences or a larger --refit-damping help.",
            stacklevel=2,
        )
        after = None
    slice_dimension_(model, dimension, positions, num_groups, optimizer)
    if after is not None:
        _set_effective_weight_(consumer, after)


def cut_(
    model: nn.Module,
    structure: Structure,
    before: Plan,
    after: Plan,
    *,
    calibration: Sequence[torch.Tensor] | None = None,
    damping: float = 0.01,
    optimizer: object | None = None,
) -> None:
    """Cut a model from one plan to a smaller one, in place, and refit what consumed the cut.

    With calibration sequences the cut goes block by block: each consumer is refitted on the outputs of the blocks
    before it as they are after their own cut, and only one second moment is in memory at a time.

    Args:
        model: the model or the ``PeftModel`` around it, at plan ``before``.
        structure: of the model before any pruning.
        before: plan that the model is at.
        after: plan to cut down to.
        calibration: token ids, 1-D tensors; None cuts without refit.
        damping: ridge of the refit as a share of the mean diagonal of the second moment.
        optimizer: its state shrinks with the parameters.
    """
    if not calibration:
        slice_(model, structure, before, after, optimizer)
        return
    changed = after.positions_in(before)
    with inference_mode(model):
        layerwise = LayerwisePass(model, structure, calibration)
        for layer in range(len(structure.blocks)):
            for dimension in structure.of_layer(layer):
                if dimension.name in changed:
                    moment = layerwise.second_moment(dimension.consumer.module)
                    _cut_and_refit_(
                        model,
                        dimension,
                        changed[dimension.name],
                        before.count(dimension.name),
                        moment,
                        damping,
                        optimizer,
                    )
            layerwise.advance()
