"""Cutting a plan into a model: base weights, biases, LoRA factors and optimizer state shrink in place."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from loraprune.structure import Member, PrunableDimension
from loraprune.wrapping import base_layer, base_model

if TYPE_CHECKING:
    from loraprune.plan import Plan
    from loraprune.structure import Structure


def raw_optimizer(optimizer: object | None) -> torch.optim.Optimizer | None:
    """The torch optimizer under accelerate's wrapper."""
    while optimizer is not None and not isinstance(optimizer, torch.optim.Optimizer):
        optimizer = getattr(optimizer, "optimizer", None)
    return optimizer


@torch.no_grad()
def _select_(
    parameter: torch.Tensor | None, dim: int, index: torch.Tensor, optimizer: torch.optim.Optimizer | None
) -> None:
    """Keep ``index`` along ``dim`` of a parameter and of every optimizer tensor of its shape.

    The parameter object stays the same, so whoever holds it (the optimizer, peft) goes on with the smaller one.
    """
    if parameter is None:
        return
    shape = parameter.shape
    index = index.to(parameter.device)
    kept = parameter.data.index_select(dim, index).contiguous()
    if parameter.requires_grad:
        # A graph that is still alive (a loss that somebody holds) keeps the parameter's gradient accumulator, which
        # expects the old shape. A passing change of dtype makes torch let go of it.
        parameter.data = kept.new_empty(0, dtype=torch.float64 if kept.dtype != torch.float64 else torch.float32)
    parameter.data = kept
    parameter.grad = None
    if optimizer is not None and parameter in optimizer.state:
        state = optimizer.state[parameter]
        for key, value in state.items():
            if isinstance(value, torch.Tensor) and value.shape == shape:
                state[key] = value.index_select(dim, index.to(value.device)).contiguous()


def _adapter_tensors(module: Any, axis: str) -> Iterator[tuple[torch.Tensor | None, int]]:
    """Tensors of the adapters on a layer that shrink with one of its sides, with the dimension that does."""
    for name in getattr(module, "lora_A", {}):
        if axis == "input":
            yield module.lora_A[name].weight, 1
        else:
            yield module.lora_B[name].weight, 0
            yield module.lora_B[name].bias, 0
            if name in getattr(module, "lora_magnitude_vector", {}):  # DoRA
                yield module.lora_magnitude_vector[name].weight, 0


@torch.no_grad()
def _dora_norms(module: Any) -> dict[str, torch.Tensor]:
    """Norms of the rows of ``W + s·B·A``, by which DoRA divides, for each of its adapters."""
    return {
        name: torch.linalg.vector_norm(
            base_layer(module).weight.float()
            + module.scaling[name] * (module.lora_B[name].weight.float() @ module.lora_A[name].weight.float()),
            dim=1,
        )
        for name in getattr(module, "lora_magnitude_vector", {})
    }


def _update_sizes(module: Any, axis: str, length: int) -> None:
    """Set the sizes that layers remember; they are printed, and read when the model is described again."""
    attribute = "out_features" if axis == "output" else "in_features"
    layers = [module, base_layer(module)]
    layers += (module.lora_B if axis == "output" else module.lora_A).values() if hasattr(module, "lora_A") else []
    for layer in layers:
        if hasattr(layer, attribute):
            setattr(layer, attribute, length)


def slice_member_(
    model: nn.Module,
    member: Member,
    groups: torch.Tensor,
    num_groups: int,
    optimizer: torch.optim.Optimizer | None = None,
) -> None:
    """Cut one side of one layer down to ``groups`` (indices among its ``num_groups`` groups of now)."""
    module: Any = model.get_submodule(member.module)
    layer = base_layer(module)
    dim = 0 if member.axis == "output" else 1
    index = member.positions(groups, num_groups, layer.weight.shape[dim])
    norms = _dora_norms(module) if member.axis == "input" else {}
    _select_(layer.weight, dim, index, optimizer)
    if member.axis == "output":
        _select_(layer.bias, 0, index, optimizer)
    for tensor, tensor_dim in _adapter_tensors(module, member.axis):
        _select_(tensor, tensor_dim, index, optimizer)
    for name, norm in norms.items():
        # The columns that went were part of the norms: without this, what stays would grow.
        module.lora_magnitude_vector[name].weight.data.mul_(_dora_norms(module)[name] / norm)
    _update_sizes(module, member.axis, len(index))


def slice_dimension_(
    model: nn.Module,
    dimension: PrunableDimension,
    positions: Sequence[int],
    num_groups: int,
    optimizer: object | None = None,
) -> None:
    """Cut one prunable dimension: every producer and the consumer.

    Args:
        model: the model or the ``PeftModel`` around it.
        dimension: what to cut.
        positions: which of the groups that there are now stay, ascending.
        num_groups: groups that there are now.
        optimizer: its state shrinks with the parameters; accelerate's wrapper is fine.
    """
    model = base_model(model)
    groups = torch.as_tensor(positions, dtype=torch.long)
    for member in dimension.all_members:
        slice_member_(model, member, groups, num_groups, raw_optimizer(optimizer))


def slice_(model: nn.Module, structure: Structure, before: Plan, after: Plan, optimizer: object | None = None) -> None:
    """Cut a model that is at plan ``before`` down to plan ``after``, in place; the memory of the rest is freed.

    Raises:
        ValueError: ``after`` keeps something that ``before`` had given up.
    """
    changed = after.positions_in(before)
    for dimension in structure:
        if dimension.name in changed:
            slice_dimension_(model, dimension, changed[dimension.name], before.count(dimension.name), optimizer)
