"""Zeros in the linear layers of a model's blocks: whether a model is sparse, and how sparse."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from loraprune.layers.quantized import is_quantized
from loraprune.layers.unwrap import base_model
from loraprune.processes.sharding import whole
from loraprune.sparsity.matrices import matrices_of

if TYPE_CHECKING:
    from loraprune.structure.dimensions import Structure

SPARSE_FROM = 0.01
"""Share of zeros from which a matrix counts as sparse: rounding alone leaves a few zeros among a million weights."""


@dataclass(frozen=True, kw_only=True)
class Zeros:
    """Counts of zero weights.

    Attributes:
        weights: number of weights by position in the block (``mlp.down_proj``).
        zeros: number of zero weights by position in the block.
        highest_share: highest share of zeros in a single matrix.
    """

    weights: dict[str, int]
    zeros: dict[str, int]
    highest_share: float

    @property
    def count(self) -> int:
        """Number of zero weights."""
        return sum(self.zeros.values())

    @property
    def share(self) -> float:
        """Share of zero weights."""
        return self.count / max(1, sum(self.weights.values()))

    @property
    def are_sparsity(self) -> bool:
        """Whether the model was made sparse; one matrix is enough, because layers can be left out."""
        return self.highest_share >= SPARSE_FROM

    def to_json(self) -> dict[str, Any]:
        """Return the counts as plain values."""
        return {
            "share": self.share,
            "zeros": self.count,
            "weights": sum(self.weights.values()),
            "kinds": {kind: self.zeros[kind] / weights for kind, weights in self.weights.items()},
        }


@torch.no_grad()
def zeros_of(model: nn.Module, structure: Structure) -> Zeros:
    """Count the zeros in the blocks' linear layers and experts.

    Quantized layers are left out, because quantization itself turns small weights into zeros.

    Args:
        model: model without an adapter.
        structure: structure of the model.
    """
    weights: dict[str, int] = {}
    zeros: dict[str, int] = {}
    highest = 0.0
    (blocks,) = structure.of_kind("blocks") or (None,)
    names = structure.blocks
    if blocks is not None:  # some of the blocks may have been removed
        path = blocks.consumer.module
        names = tuple(f"{path}.{name}" for name, _ in base_model(model).get_submodule(path).named_children())
    for block in names:
        for matrix in matrices_of(base_model(model), block):
            if is_quantized(matrix.module):
                continue
            weight = whole(matrix.weight_oi())
            found = weight.numel() - int(torch.count_nonzero(weight))
            weights[matrix.kind] = weights.get(matrix.kind, 0) + weight.numel()
            zeros[matrix.kind] = zeros.get(matrix.kind, 0) + found
            highest = max(highest, found / max(1, weight.numel()))
    return Zeros(weights=weights, zeros=zeros, highest_share=highest)
