"""Tensors of a layer that shrink with one of its sides: the only module that knows the storage of layer types."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from loraprune.architectures.spec import Axis
from loraprune.layers.quantized import is_quantized, shape_of, weight_rows
from loraprune.layers.unwrap import base_layer
from loraprune.processes.sharding import whole

STACKED_DIMS: dict[Axis, int] = {"experts": 0, "output": 1, "input": 2}


@dataclass(frozen=True)
class TensorAxis:
    """A parameter of a layer and its dimension that shrinks.

    Attributes:
        name: name of the parameter in the layer.
        dim: dimension that shrinks.
        stacked: whether the parameter holds one matrix per expert, in its first dimension.
    """

    name: str
    dim: int
    stacked: bool = False


def is_transposed(layer: nn.Module) -> bool:
    """Whether a layer stores its weight as (in, out): GPT-2's ``Conv1D``."""
    return hasattr(layer, "nf") and hasattr(layer, "nx")


def is_stacked(layer: nn.Module, parameter: str) -> bool:
    """Whether a parameter holds one matrix per expert."""
    value = getattr(layer, parameter, None)
    return parameter != "weight" and isinstance(value, torch.Tensor) and value.dim() == 3


def tensor_axes(module: Any, axis: Axis, parameter: str = "weight") -> tuple[TensorAxis, ...]:
    """Return the parameters of a layer that shrink with one of its sides; the first determines the axis length.

    Raises:
        ValueError: the layer has no such parameter or no such side.
    """
    layer = base_layer(module)
    value = getattr(layer, parameter, None)
    if not isinstance(value, torch.Tensor):
        raise ValueError(f"it is a {type(layer).__name__} and has no tensor {parameter!r}")
    if is_stacked(layer, parameter):
        dims = dict(STACKED_DIMS)
        if getattr(layer, "is_transposed", False):
            dims["output"], dims["input"] = dims["input"], dims["output"]
        if axis not in dims:
            raise ValueError(f"stacked experts have no {axis!r} side")
        found = [TensorAxis(parameter, dims[axis], stacked=axis != "experts")]
        if axis != "input" and isinstance(getattr(layer, f"{parameter}_bias", None), torch.Tensor):
            found.append(TensorAxis(f"{parameter}_bias", min(dims[axis], 1), stacked=axis != "experts"))
        return tuple(found)
    if value.dim() == 1 or axis == "norm":
        if axis == "input":
            raise ValueError(f"it is a {type(layer).__name__}, which has no input side")
        dim = 0
    elif isinstance(layer, nn.Embedding):
        if axis != "output":
            raise ValueError("an embedding has only an output side")
        return (TensorAxis(parameter, 1),)
    else:
        dim = 1 if (axis == "input") != is_transposed(layer) else 0
    found = [TensorAxis(parameter, dim)]
    if axis != "input" and parameter == "weight" and isinstance(getattr(layer, "bias", None), torch.Tensor):
        found.append(TensorAxis("bias", 0))
    return tuple(found)


def axis_length(module: Any, axis: Axis, parameter: str = "weight") -> int:
    """Return the number of positions along one side of a layer; for stacked experts, along one expert's side."""
    layer = base_layer(module)
    if isinstance(layer, nn.ModuleList):
        return len(layer)
    first = tensor_axes(module, axis, parameter)[0]
    return _shape(layer, first.name)[first.dim]


def _shape(layer: nn.Module, name: str) -> tuple[int, ...]:
    """Shape of a parameter; for a quantized weight, (out, in)."""
    return shape_of(layer) if name == "weight" and is_quantized(layer) else tuple(getattr(layer, name).shape)


def parameters_per_position(module: Any, axis: Axis, parameter: str = "weight") -> int:
    """Return the parameters per position of a side (for stacked experts, of one expert's side)."""
    layer = base_layer(module)
    if isinstance(layer, nn.ModuleList):
        return sum(value.numel() for value in layer[0].parameters())
    total = 0
    for found in tensor_axes(module, axis, parameter):
        value = getattr(layer, found.name)
        if isinstance(value, nn.Parameter):
            shape = _shape(layer, found.name)
            total += math.prod(shape) // shape[found.dim] // (shape[0] if found.stacked else 1)
    return total


def weight_oi(layer: nn.Module) -> torch.Tensor:
    """Return the weight of an unquantized linear layer as (out, in), a view in either storage layout."""
    weight: torch.Tensor = layer.weight  # type: ignore[assignment]
    return weight.T if is_transposed(layer) else weight


def matrix_shape(layer: nn.Module) -> tuple[int, int]:
    """Return outputs and inputs of a linear layer, quantized or not."""
    if is_quantized(layer):
        return shape_of(layer)
    rows, columns = weight_oi(layer).shape
    return rows, columns


def base_weight(layer: nn.Module, rows: slice = slice(None)) -> torch.Tensor:
    """Return some rows of a linear layer's (dequantized) weight in 32 bits, shape ``(rows, in)``, as a new tensor."""
    if is_quantized(layer):
        return weight_rows(layer, rows)
    weight: torch.Tensor = whole(layer.weight)  # type: ignore[arg-type]
    return (weight.T if is_transposed(layer) else weight)[rows].detach().to(torch.float32, copy=True)


def is_matrix(module: Any, parameter: str = "weight") -> bool:
    """Whether a layer is linear: its weight is a matrix that multiplies its input."""
    layer = base_layer(module)
    weight = getattr(layer, parameter, None)
    return (
        parameter == "weight"
        and isinstance(weight, torch.Tensor)
        and weight.dim() == 2
        and not isinstance(layer, nn.Embedding)
        and hasattr(layer, "bias")
    )
