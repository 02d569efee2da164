"""Learnt gates made part of the layers that they stand before."""

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
    """Multiply the columns of each consumer with the gates on its inputs, in place: the same function without gates.

    The base weight takes up the change, and the adapter stays as it is; columns with a gate of 1 are not touched.

    Args:
        model: the model or the ``PeftModel`` around it.
        structure: of the model.
        gates: by dimension, one value a group; dimensions without any are left alone.
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
