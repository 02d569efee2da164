"""Least-squares repair of the layer that consumed what a cut took away."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from loraprune.adapters import effective_weight, lora_delta
from loraprune.axes import weight_oi
from loraprune.expert_refit import refit_experts_
from loraprune.inference import inference_mode
from loraprune.layerwise import Calibration, LayerwisePass, WholeModelPass
from loraprune.least_squares import NotPositiveDefiniteError, refit_columns
from loraprune.masking import masked
from loraprune.plan import Plan
from loraprune.slicing import slice_, slice_dimension_
from loraprune.wrapping import base_layer, base_model

if TYPE_CHECKING:
    from loraprune.dimensions import PrunableDimension, Structure


@torch.no_grad()
def _set_columns_(module: nn.Module, columns: torch.Tensor | None, weight: torch.Tensor) -> None:
    """Choose columns of the base weight so that base and adapter together make ``weight``; the adapter stays as it is.

    ``columns`` are their positions, or None where ``weight`` is the whole.
    """
    delta = lora_delta(module)
    base = weight_oi(base_layer(module)).data
    if columns is None:
        base.copy_(weight if delta is None else weight - delta)
    else:
        base[:, columns] = (weight if delta is None else weight - delta[:, columns]).to(base.dtype)


@torch.no_grad()
def _refitted(
    model: nn.Module,
    dimension: PrunableDimension,
    positions: Sequence[int],
    num_groups: int,
    moment: torch.Tensor,
    damping: float,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Positions of the columns that stay and what they should be; None, with a warning, where no refit is possible."""
    consumer = base_model(model).get_submodule(dimension.consumer.module)
    before = effective_weight(consumer)
    columns = dimension.consumer.positions(torch.as_tensor(positions), num_groups, before.shape[1]).to(before.device)
    try:
        return columns, refit_columns(before, moment, columns, damping)
    except NotPositiveDefiniteError:
        warnings.warn(
            f"{dimension.name}: no refit, since the second moment of its inputs is not positive definite. The cut "
            "is made without it. More calibration sequences or a larger --refit-damping help.",
            stacklevel=2,
        )
        return columns, None


def cut_(
    model: nn.Module,
    structure: Structure,
    before: Plan,
    after: Plan,
    *,
    calibration: Calibration | None = None,
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
        calibration: token ids, 1-D tensors, or mappings of the model's inputs; None cuts without refit.
        damping: ridge of the refit as a share of the mean diagonal of the second moment.
        optimizer: its state shrinks with the parameters.
    """
    if not calibration:
        slice_(model, structure, before, after, optimizer)
        return
    tokens_only = all(isinstance(item, torch.Tensor) for item in calibration)
    with inference_mode(model):
        if structure.spec.decoder is not None and tokens_only:
            _cut_block_by_block_(model, structure, before, after, calibration, damping, optimizer)
        else:
            _cut_at_once_(model, structure, before, after, calibration, damping, optimizer)


def _cut_block_by_block_(
    model: nn.Module,
    structure: Structure,
    before: Plan,
    after: Plan,
    calibration: Any,
    damping: float,
    optimizer: object | None,
) -> None:
    """Each block is cut and refitted before the calibration data moves on to the next."""
    changed = after.positions_in(before)
    layerwise = LayerwisePass(model, structure, calibration)
    for layer in range(len(structure.blocks)):
        for dimension in structure.of_layer(layer):
            name = dimension.name
            if name in changed:
                count = before.count(name)
                weight = None
                if dimension.of_experts:
                    refit_experts_(model, dimension, changed[name], count, layerwise, damping)
                else:
                    moment = layerwise.second_moment(dimension.consumer.module)
                    _, weight = _refitted(model, dimension, changed[name], count, moment, damping)
                slice_dimension_(model, dimension, changed[name], count, optimizer)
                if weight is not None:
                    _set_columns_(base_model(model).get_submodule(dimension.consumer.module), None, weight)
        layerwise.advance()


def _cut_at_once_(
    model: nn.Module,
    structure: Structure,
    before: Plan,
    after: Plan,
    calibration: Calibration,
    damping: float,
    optimizer: object | None,
) -> None:
    """All blocks wear masks while their consumers are refitted in the order of the forward pass; then all are cut.

    For models whose blocks depend on each other's widths (a position bias that all share, say), so that a model cut
    in part cannot run.
    """
    changed = after.positions_in(before)
    counts = {dimension.name: before.count(dimension.name) for dimension in structure}
    now = structure.shrunk(counts)
    target = Plan.full(now).keep(changed)
    whole = WholeModelPass(model, calibration)
    with masked(model, now, target):
        for dimension in now:
            if dimension.name in changed:
                positions = changed[dimension.name]
                if dimension.of_experts:
                    refit_experts_(model, dimension, positions, dimension.num_groups, whole, damping)
                    continue
                moment = whole.second_moment(dimension.consumer.module)
                columns, weight = _refitted(model, dimension, positions, dimension.num_groups, moment, damping)
                if weight is not None:
                    _set_columns_(base_model(model).get_submodule(dimension.consumer.module), columns, weight)
    slice_(model, structure, before, after, optimizer)
