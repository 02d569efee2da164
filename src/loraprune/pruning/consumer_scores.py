"""Scores of groups from what enters the layer that reads them, on calibration data."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import torch

from loraprune.calibration.least_squares import NotPositiveDefiniteError
from loraprune.importance.consumer_inputs import group_positions
from loraprune.importance.flap import flap_group_scores
from loraprune.importance.osscar import osscar_group_scores
from loraprune.importance.wanda import wanda_group_scores
from loraprune.layers.lora import effective_expert_weight, effective_weight
from loraprune.layers.unwrap import base_model

if TYPE_CHECKING:
    from torch import nn

    from loraprune.calibration.block_by_block import CalibrationPass
    from loraprune.calibration.features import FeatureStatistics
    from loraprune.structure.dimensions import PrunableDimension


def _scores(
    method: str,
    name: str,
    weight_OI: torch.Tensor,
    inputs: FeatureStatistics,
    positions_GK: torch.Tensor,
    damping: float,
) -> torch.Tensor:
    positions_GK = positions_GK.to(weight_OI.device)
    if method == "wanda":
        return wanda_group_scores(weight_OI, inputs.mean_square, positions_GK)
    if method == "flap":
        return flap_group_scores(weight_OI, inputs.variance, positions_GK)
    try:
        return osscar_group_scores(weight_OI, inputs.moment, positions_GK, damping)
    except NotPositiveDefiniteError:
        warnings.warn(
            f"{name}: the second moment of its inputs is not positive definite, so that its groups are scored by "
            "wanda. More calibration sequences or a larger --damping help.",
            stacklevel=2,
        )
        return wanda_group_scores(weight_OI, inputs.mean_square, positions_GK)


@torch.no_grad()
def consumer_scores(
    method: str,
    model: nn.Module,
    dimension: PrunableDimension,
    num_groups: int,
    calibration: CalibrationPass,
    damping: float,
) -> torch.Tensor:
    """Score the groups of one dimension as the model is now.

    Args:
        method: ``wanda``, ``flap`` or ``osscar``.
        model: the model or the ``PeftModel`` around it.
        dimension: of the block that the pass has come to.
        num_groups: groups that there are now.
        calibration: the pass.
        damping: of ``osscar``, as that of the refit.

    Returns:
        Shape ``(groups,)``, float32.

    Raises:
        ArithmeticError: NaN or Inf comes in on the calibration data.
    """
    score = _expert_scores if dimension.of_experts else _layer_scores
    scores = score(method, model, dimension, num_groups, calibration, damping)
    if not torch.isfinite(scores).all():
        raise ArithmeticError(
            f"The scores of {dimension.name} on the calibration data hold NaN or Inf. Is the model sound in this dtype?"
        )
    return scores


def _layer_scores(
    method: str,
    model: nn.Module,
    dimension: PrunableDimension,
    num_groups: int,
    calibration: CalibrationPass,
    damping: float,
) -> torch.Tensor:
    consumer = base_model(model).get_submodule(dimension.consumer.module)
    # The pass first: it brings the block to where it computes.
    inputs = calibration.features(dimension.consumer.module, moment=method == "osscar")
    weight = effective_weight(consumer)
    positions = group_positions(dimension, num_groups, weight.shape[1])
    return _scores(method, dimension.name, weight, inputs, positions, damping)


def _expert_scores(
    method: str,
    model: nn.Module,
    dimension: PrunableDimension,
    num_groups: int,
    calibration: CalibrationPass,
    damping: float,
) -> torch.Tensor:
    """The same inside each expert; a whole expert has the scores of all of its channels.

    Scores count for the tokens that come to an expert, so that a busy one loses less than an idle one where experts
    compete.
    """
    consumer = dimension.consumer
    module = base_model(model).get_submodule(consumer.module)
    tokens = calibration.routed_tokens(consumer.module)
    whole = consumer.axis == "experts"
    experts = num_groups if whole else dimension.strata
    found = []
    for expert in range(experts):
        weight = effective_expert_weight(module, consumer.parameter, expert)
        inputs = tokens.weighted_features(module, expert, moment=method == "osscar")
        channels = weight.shape[1] if whole else num_groups // experts
        if inputs is None:
            found.append(torch.zeros(1 if whole else channels, device=weight.device))
            continue
        if whole and method == "osscar":  # nothing makes up for an expert: its whole output is lost
            lost = ((weight @ inputs.moment) * weight).sum()
            found.append(lost[None] * inputs.rows)
            continue
        positions = torch.arange(weight.shape[1]).view(channels, -1)
        scores = _scores(method, dimension.name, weight, inputs, positions, damping) * inputs.rows
        found.append(scores.sum()[None] if whole else scores)
    return torch.cat(found)
