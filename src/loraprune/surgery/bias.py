"""Bias compensation: the mean of what a cut takes away goes into the bias of the layer that consumed it."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from loraprune.calibration.features import ALL_ROWS
from loraprune.calibration.least_squares import are_few
from loraprune.importance.flap import bias_of_removed
from loraprune.layers.axes import axis_length
from loraprune.layers.lora import effective_weight
from loraprune.layers.quantized import is_quantized_model
from loraprune.layers.unwrap import base_layer, base_model

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import PreTrainedModel

    from loraprune.calibration.block_by_block import CalibrationPass
    from loraprune.structure.dimensions import PrunableDimension, Structure

SWITCHES = ("attention_bias", "mlp_bias", "use_bias", "enable_bias", "bias")
"""What configs call the switch that gives linear layers a bias. Whether the class heeds it is looked up in a model."""


def _has_bias(model: nn.Module, name: str) -> bool:
    return getattr(base_layer(model.get_submodule(name)), "bias", None) is not None


def _stock(model: PreTrainedModel, switches: Sequence[str]) -> nn.Module:
    """A model of the same class without weights, with the switches on."""
    config = copy.deepcopy(model.config)
    for switch in switches:
        setattr(config, switch, True)
    with torch.device("meta"):
        return type(model)(config)


def bias_switches(model: PreTrainedModel, structure: Structure) -> list[str]:
    """What has to be switched on in the config so that every consumer has a bias; the model may be without weights.

    Raises:
        ValueError: some consumer cannot have one.
    """
    if any(dimension.of_experts for dimension in structure.open):
        raise ValueError(
            "Experts cannot be repaired by their biases. Choose --repair refit, or prune other dimensions."
        )
    missing = [d for d in structure.open if not _has_bias(model, d.consumer.module)]
    switches = [switch for switch in SWITCHES if missing and getattr(model.config, switch, None) is False]
    helpful = []
    for switch in switches:
        stock = _stock(model, [switch])
        found = [dimension for dimension in missing if _has_bias(stock, dimension.consumer.module)]
        if found:
            helpful.append(switch)
            missing = [dimension for dimension in missing if dimension not in found]
    if missing:
        kinds = ", ".join(dict.fromkeys(dimension.kind for dimension in missing))
        raise ValueError(
            f"Bias compensation needs a bias on {missing[0].consumer.module}, and the config of "
            f"{structure.spec.model_type} models cannot say one there. Choose --repair refit or none, or leave the "
            f"{kinds} out (--dimensions)."
        )
    return helpful


@torch.no_grad()
def give_biases_(model: nn.Module, structure: Structure) -> None:
    """Give every consumer a bias of zeros, by way of the config, so that a stock class still loads the model.

    The biases are trained where the weights beside them are.

    Args:
        model: the model or the ``PeftModel`` around it.
        structure: of the model.

    Raises:
        ValueError: see :func:`bias_switches`; or the model is quantized.
    """
    plain = base_model(model)
    switches = bias_switches(plain, structure)
    if not switches:
        return
    if is_quantized_model(plain):
        raise ValueError(
            "Bias compensation gives layers a bias, which a quantized base has no place for. Choose --repair refit."
        )
    for name, module in _stock(plain, switches).named_modules():
        if not isinstance(getattr(module, "bias", None), nn.Parameter):
            continue
        mine: Any = base_layer(plain.get_submodule(name))
        if getattr(mine, "bias", None) is None:
            zeros = torch.zeros(axis_length(mine, "output"), dtype=mine.weight.dtype, device=mine.weight.device)
            mine.bias = nn.Parameter(zeros, requires_grad=mine.weight.requires_grad)
    for switch in switches:
        setattr(plain.config, switch, True)


@torch.no_grad()
def compensate_(
    model: nn.Module, dimension: PrunableDimension, kept: torch.Tensor, calibration: CalibrationPass
) -> None:
    """Add what the columns that go gave on average to the bias of a consumer, before the cut.

    Where there are few tokens, it is scaled by the squared cosine between what the two halves of them would add: the
    share of the one that the other bears out. A single short sequence bears nothing out.

    Args:
        model: the model or the ``PeftModel`` around it.
        dimension: about to be cut.
        kept: columns of the consumer that stay.
        calibration: the pass over the calibration data, arrived at the consumer's block.
    """
    consumer = base_model(model).get_submodule(dimension.consumer.module)
    weight = effective_weight(consumer)
    removed = torch.ones(weight.shape[1], dtype=torch.bool, device=weight.device)
    removed[kept] = False

    def missing(rows: slice = ALL_ROWS) -> tuple[torch.Tensor, int]:
        inputs = calibration.features(dimension.consumer.module, moment=False, rows=rows)
        return bias_of_removed(weight, inputs.mean, removed.nonzero()[:, 0]), inputs.rows

    added, rows = missing()
    if are_few(rows, weight.shape[1]):
        if calibration.num_sequences < 2:
            return
        first, second = (missing(half)[0] for half in (slice(0, rows // 2), slice(rows // 2, rows)))
        added *= torch.cosine_similarity(first, second, dim=0).clamp_min(0.0).square()
    bias: torch.Tensor = base_layer(consumer).bias
    bias.add_(added.to(bias.dtype))
