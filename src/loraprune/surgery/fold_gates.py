"""Merges learned gates into the layers that they precede."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import nn

from loraprune.importance.evidence.learned_gates import over_features
from loraprune.layers.unwrap import base_model
from loraprune.surgery.effective_weights import set_columns_, weight_before

if TYPE_CHECKING:
    from loraprune.structure.dimensions import Structure


@torch.no_grad()
def fold_gates_(model: nn.Module, structure: Structure, gates: Mapping[str, torch.Tensor]) -> None:
    """Multiply the columns of each consumer by the gates on its inputs, in place; the function does not change.

    Only the base weight changes, not the adapter; columns with a gate of 1 are not modified.

    Args:
        model: the model or the ``PeftModel`` around it.
        structure: structure of the model.
        gates: one value per group, by dimension; dimensions without gates are skipped.
    """
    base = base_model(model)
    for dimension in structure:
        if dimension.name not in gates:
            continue
        module = base.get_submodule(dimension.consumer.module)
        weight = weight_before(module)
        gates_I = over_features(gates[dimension.name].to(weight.device), dimension.consumer, weight.shape[1])
        columns = (gates_I != 1.0).nonzero()[:, 0]
        if len(columns):
            set_columns_(module, columns, weight[:, columns] * gates_I[columns])
