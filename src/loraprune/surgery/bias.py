"""Bias compensation: the mean of the removed inputs is added to the bias of their consumer."""

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
"""Config attributes that give linear layers a bias. Whether the class honors one is looked up in a model."""


def _has_bias(model: nn.Module, name: str) -> bool:
    return getattr(base_layer(model.get_submodule(name)), "bias", None) is not None


def _stock(model: PreTrainedModel, switches: Sequence[str]) -> nn.Module:
    """Build a model of the same class without weights, with the switches on."""
    config = copy.deepcopy(model.config)
    for switch in switches:
        setattr(config, switch, True)
    with torch.device("meta"):
        return type(model)(config)


def bias_switches(model: PreTrainedModel, structure: Structure) -> list[str]:
    """Return the config attributes to switch on to give every consumer a bias; the model may have no weights.

    Raises:
        ValueError: some consumer cannot have a bias.
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
            f"Bias compensation needs a bias on {missing[0].consumer.module}, but the config of "
            f"{structure.spec.model_type} models cannot set one there. Choose --repair refit or none, or leave out the "
            f"{kinds} (--dimensions)."
        )
    return helpful


@torch.no_grad()
def give_biases_(model: nn.Module, structure: Structure) -> None:
    """Give every consumer a bias of zeros, and switch it on in the config, so a stock class still loads the model.

    A bias is trained if the weight of its layer is.

    Args:
        model: the model or the ``PeftModel`` around it.
        structure: structure of the model.

    Raises:
        ValueError: see :func:`bias_switches`; or the model is quantized.
    """
    plain = base_model(model)
    switches = bias_switches(plain, structure)
    if not switches:
        return
    if is_quantized_model(plain):
        raise ValueError(
            "Bias compensation adds biases to layers, which a quantized base does not support. Choose --repair refit."
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
    """Add the mean contribution of the removed columns to the bias of a consumer, before the cut.

    With few tokens, the addition is scaled by the squared cosine between the additions computed from the two halves of
    the tokens: the share of one that the other confirms. A single short sequence confirms nothing.

    Args:
        model: the model or the ``PeftModel`` around it.
        dimension: dimension about to be cut.
        kept: columns of the consumer that stay.
        calibration: pass over the calibration data, positioned at the consumer's block.
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
