"""Matrices of a block that can be made sparse: those of linear layers and of every expert."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from loraprune.layers.axes import is_matrix, is_stacked, matrix_shape, weight_oi
from loraprune.layers.experts import up_parameter
from loraprune.layers.lora import expert_weight_oi


@dataclass(frozen=True)
class Matrix:
    """A matrix that multiplies an input.

    Attributes:
        module: the layer.
        module_name: name of the layer in the model.
        block: name of its block.
        parameter: name of the parameter.
        expert: number of the expert in a stack; None for a layer of its own.
    """

    module: nn.Module
    module_name: str
    block: str
    parameter: str = "weight"
    expert: int | None = None

    @property
    def name(self) -> str:
        """Name in the model: ``model.layers.0.mlp.down_proj``, ``model.layers.0.mlp.experts.down_proj[3]``."""
        if self.expert is None:
            return self.module_name
        return f"{self.module_name}.{self.parameter}[{self.expert}]"

    @property
    def kind(self) -> str:
        """Position in the block, the same in every block: ``mlp.down_proj``, ``mlp.experts.down_proj``."""
        place = self.module_name.removeprefix(f"{self.block}.")
        return place if self.expert is None else f"{place}.{self.parameter}"

    def weight_oi(self) -> torch.Tensor:
        """Return the matrix as (out, in), a view into the model."""
        if self.expert is None:
            return weight_oi(self.module)
        return expert_weight_oi(self.module, self.parameter, self.expert)

    @torch.no_grad()
    def write_(self, weight_OI: torch.Tensor) -> None:
        """Write other values into the model. Zeros stay zeros in the model's dtype."""
        self.weight_oi().copy_(weight_OI)


def stacked_parameters(module: Any) -> tuple[str, ...]:
    """Names of the parameters of stacked experts, in the order of the forward pass; empty for other modules."""
    if not (hasattr(module, "has_gate") and is_stacked(module, "down_proj")):
        return ()
    return (up_parameter(module), "down_proj")


def matrices_of(model: nn.Module, block: str) -> Iterator[Matrix]:
    """Yield the matrices of a block, in the order of its modules.

    Embeddings and norms are left out, and so are layers with a single output, which are gates.
    """
    for name, module in model.get_submodule(block).named_modules(prefix=block):
        if is_matrix(module) and matrix_shape(module)[0] > 1:
            yield Matrix(module, name, block)
        for parameter in stacked_parameters(module):
            for expert in range(len(getattr(module, parameter))):
                yield Matrix(module, name, block, parameter, expert)
