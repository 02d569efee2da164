"""Scores of groups from the inputs of the layer that reads them (the consumer), on calibration data."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import torch

from loraprune.calibration.least_squares import NotPositiveDefiniteError
from loraprune.importance.configs import AtConsumers, Wanda
from loraprune.importance.consumer_inputs import group_positions
from loraprune.layers.lora import effective_expert_weight, effective_weight
from loraprune.layers.unwrap import base_model

if TYPE_CHECKING:
    from torch import nn

    from loraprune.calibration.block_by_block import CalibrationPass
    from loraprune.calibration.features import FeatureStatistics
    from loraprune.structure.dimensions import PrunableDimension


def _scores(
    criterion: AtConsumers, name: str, weight_OI: torch.Tensor, inputs: FeatureStatistics, positions_GK: torch.Tensor
) -> torch.Tensor:
    positions_GK = positions_GK.to(weight_OI.device)
    try:
        return criterion.group_scores(weight_OI, inputs, positions_GK)
    except NotPositiveDefiniteError:
        warnings.warn(
            f"{name}: the second moment of its inputs is not positive definite, so its groups are scored by wanda. "
            "Use more calibration sequences or a larger --damping.",
            stacklevel=2,
        )
        return Wanda().group_scores(weight_OI, inputs, positions_GK)


@torch.no_grad()
def consumer_scores(
    criterion: AtConsumers,
    model: nn.Module,
    dimension: PrunableDimension,
    num_groups: int,
    calibration: CalibrationPass,
) -> torch.Tensor:
    """Score the current groups of one dimension.

    Args:
        criterion: ``wanda``, ``flap`` or ``osscar``.
        model: the model or the ``PeftModel`` around it.
        dimension: dimension of the current block of the pass.
        num_groups: current number of groups.
        calibration: pass over the calibration data.

    Returns:
        Shape ``(groups,)``, float32.

    Raises:
        ArithmeticError: the scores have NaN or Inf.
    """
    score = _expert_scores if dimension.of_experts else _layer_scores
    scores = score(criterion, model, dimension, num_groups, calibration)
    if not torch.isfinite(scores).all():
        raise ArithmeticError(
            f"The scores of {dimension.name} contain NaN or Inf on the calibration data. Is the model sound in "
            "this dtype?"
        )
    return scores


def _layer_scores(
    criterion: AtConsumers,
    model: nn.Module,
    dimension: PrunableDimension,
    num_groups: int,
    calibration: CalibrationPass,
) -> torch.Tensor:
    consumer = base_model(model).get_submodule(dimension.consumer.module)
    # The pass comes first: it moves the block to its device.
    inputs = calibration.features(dimension.consumer.module, moment=criterion.reads_moment)
    weight = effective_weight(consumer)
    positions = group_positions(dimension, num_groups, weight.shape[1])
    return _scores(criterion, dimension.name, weight, inputs, positions)


def _expert_scores(
    criterion: AtConsumers,
    model: nn.Module,
    dimension: PrunableDimension,
    num_groups: int,
    calibration: CalibrationPass,
) -> torch.Tensor:
    """Score the channels of each expert, or whole experts.

    Scores are weighted by the number of tokens routed to an expert: if experts compete, a busy one loses less than an
    idle one.
    """
    consumer = dimension.consumer
    module = base_model(model).get_submodule(consumer.module)
    tokens = calibration.routed_tokens(consumer.module)
    whole = consumer.axis == "experts"
    experts = num_groups if whole else dimension.strata
    found = []
    for expert in range(experts):
        weight = effective_expert_weight(module, consumer.parameter, expert)
        inputs = tokens.weighted_features(module, expert, moment=criterion.reads_moment)
        channels = weight.shape[1] if whole else num_groups // experts
        if inputs is None:
            found.append(torch.zeros(1 if whole else channels, device=weight.device))
            continue
        if whole and criterion.reads_moment:  # no repair makes up for an expert: its whole output is lost
            lost = ((weight @ inputs.moment) * weight).sum()
            found.append(lost[None] * inputs.rows)
            continue
        positions = torch.arange(weight.shape[1]).view(channels, -1)
        scores = _scores(criterion, dimension.name, weight, inputs, positions) * inputs.rows
        found.append(scores.sum()[None] if whole else scores)
    return torch.cat(found)
