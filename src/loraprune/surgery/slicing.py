"""Cutting a model to a plan: base weights, biases, LoRA factors and optimizer state shrink in place."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from loraprune.layers.axes import axis_length, base_weight, tensor_axes
from loraprune.layers.quantized import is_quantized, keep_
from loraprune.layers.unwrap import adapter_of, base_layer, base_model
from loraprune.processes.sharding import apart, whole_weights
from loraprune.structure.blocks import renumber_, write_depth_
from loraprune.structure.dimensions import Member, PrunableDimension, Remembered
from loraprune.structure.hidden import scale_norms_

if TYPE_CHECKING:
    from loraprune.structure.dimensions import Structure
    from loraprune.structure.plan import Plan

Pick = Callable[[torch.Tensor], torch.Tensor]
"""Returns the part of a tensor that stays."""


def raw_optimizer(optimizer: object | None) -> torch.optim.Optimizer | None:
    """Return the torch optimizer under accelerate's wrapper."""
    while optimizer is not None and not isinstance(optimizer, torch.optim.Optimizer):
        optimizer = getattr(optimizer, "optimizer", None)
    return optimizer


def check_sliceable(optimizer: object) -> None:
    """Check that the state of an optimizer can be cut with the parameters.

    Args:
        optimizer: optimizer after its first step, when it has a state; may be accelerate's wrapper.

    Raises:
        ValueError: it is not a torch optimizer, or its state has tensors that are neither single numbers nor of the
            parameter's shape, such as Adafactor's factors.
    """
    raw = raw_optimizer(optimizer)
    if raw is None:
        raise ValueError(f"{type(optimizer).__name__} is not a torch optimizer, so its state cannot be cut.")
    for parameter, state in raw.state.items():
        for key, value in state.items():
            if isinstance(value, torch.Tensor) and value.numel() != 1 and value.shape != parameter.shape:
                raise ValueError(
                    f"{type(raw).__name__} keeps {key!r} of shape {tuple(value.shape)} for a parameter of shape "
                    f"{tuple(parameter.shape)}, which cannot be cut with it. Use an optimizer such as torch's AdamW, "
                    "SGD or RMSprop."
                )


@torch.no_grad()
def _shrink_(parameter: torch.Tensor | None, pick: Pick, optimizer: torch.optim.Optimizer | None) -> None:
    """Keep a part of a parameter and of every optimizer tensor of its shape.

    The parameter object stays the same, so its holders (the optimizer, peft) continue with the smaller one.
    """
    if parameter is None:
        return
    shape = parameter.shape
    kept = pick(parameter.data).contiguous()
    if parameter.requires_grad:
        # A graph that is still alive (a loss that is still referenced) keeps the parameter's gradient accumulator,
        # which expects the old shape. A temporary change of dtype makes torch release it.
        parameter.data = kept.new_empty(0, dtype=torch.float64 if kept.dtype != torch.float64 else torch.float32)
    parameter.data = kept
    parameter.grad = None
    if optimizer is not None and parameter in optimizer.state:
        state = optimizer.state[parameter]
        for key, value in state.items():
            if isinstance(value, torch.Tensor) and value.shape == shape:
                state[key] = pick(value).contiguous()


def _along(dim: int, index: torch.Tensor) -> Pick:
    return lambda tensor: tensor.index_select(dim, index.to(tensor.device))


def _along_stacked(dim: int, index: torch.Tensor) -> Pick:
    """Pick positions along one dimension of stacked matrices, per expert: ``index`` is (experts, kept)."""

    def pick(tensor: torch.Tensor) -> torch.Tensor:
        shape = [1] * tensor.dim()
        shape[0], shape[dim] = index.shape
        return tensor.take_along_dim(index.to(tensor.device).view(shape), dim)

    return pick


def _adapter_tensors(module: Any, axis: str) -> Iterator[tuple[torch.Tensor | None, int]]:
    """Tensors of a layer's adapters that shrink with one of its sides, with the dimension that shrinks."""
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
    """Norms of the rows of ``W + s·B·A``, by which DoRA divides, for each DoRA adapter of a layer."""
    return {
        name: torch.linalg.vector_norm(
            base_weight(base_layer(module))
            + module.scaling[name] * (module.lora_B[name].weight.float() @ module.lora_A[name].weight.float()),
            dim=1,
        )
        for name in getattr(module, "lora_magnitude_vector", {})
    }


def _update_sizes(module: Any, axis: str, parameter: str) -> None:
    """Set the sizes that layers store, which are printed and sometimes read in the forward pass."""
    layer: Any = base_layer(module)
    length = axis_length(layer, "input" if axis == "input" else "output", parameter)
    names = ("in_features", "nx") if axis == "input" else ("out_features", "nf", "embedding_dim")
    adapters = (module.lora_A if axis == "input" else module.lora_B).values() if hasattr(module, "lora_A") else []
    for owner in (module, layer, *adapters):
        for name in names:
            if isinstance(getattr(owner, name, None), int):
                setattr(owner, name, length)
    if isinstance(getattr(layer, "normalized_shape", None), tuple):
        layer.normalized_shape = tuple(layer.weight.shape)


def _slice_stacked_adapter_(
    module: Any, member: Member, index: torch.Tensor, experts: int, optimizer: torch.optim.Optimizer | None
) -> None:
    """Cut peft's factors on stacked experts: A is (r·experts, in), B is (out, r·experts) with the experts last."""
    for name in getattr(module, "lora_A", {}):
        a, b = module.lora_A[name], module.lora_B[name]

        def pick_a(tensor: torch.Tensor) -> torch.Tensor:
            ranks = tensor.view(experts, -1, tensor.shape[1])
            kept = ranks[index] if member.axis == "experts" else _along_stacked(2, index)(ranks)
            return kept.reshape(-1, kept.shape[-1])

        def pick_b(tensor: torch.Tensor) -> torch.Tensor:
            ranks = tensor.view(tensor.shape[0], -1, experts).permute(2, 0, 1)
            kept = ranks[index] if member.axis == "experts" else _along_stacked(1, index)(ranks)
            return kept.permute(1, 2, 0).reshape(kept.shape[1], -1)

        if member.axis in ("input", "experts"):
            _shrink_(a.weight, pick_a, optimizer)
        if member.axis in ("output", "experts"):
            _shrink_(b.weight, pick_b, optimizer)
        a.in_features, a.out_features = a.weight.shape[1], a.weight.shape[0]
        b.in_features, b.out_features = b.weight.shape[1], b.weight.shape[0]
        module.in_features, module.out_features = a.in_features, b.out_features
        module.num_experts = len(index) if member.axis == "experts" else experts


def _slice_experts_(
    module: Any, member: Member, groups: torch.Tensor, num_groups: int, optimizer: torch.optim.Optimizer | None
) -> None:
    """Cut stacked experts: some positions of each, or whole experts."""
    layer = base_layer(module)
    experts = int(getattr(layer, member.parameter).shape[0])
    index = member.stacked_positions(groups, num_groups, experts) if member.stacked else groups
    for found in tensor_axes(layer, member.axis, member.parameter):
        pick = _along_stacked(found.dim, index) if member.stacked else _along(found.dim, index)
        _shrink_(getattr(layer, found.name), pick, optimizer)
    adapter = adapter_of(module, member.parameter)
    if adapter is not None:
        _slice_stacked_adapter_(adapter, member, index, experts, optimizer)


def _slice_list_(layer: nn.ModuleList, kept: Sequence[int], optimizer: torch.optim.Optimizer | None) -> None:
    """Keep some modules of a list, and delete the optimizer state of the others."""
    modules = list(layer)
    gone = {id(p) for place, module in enumerate(modules) if place not in set(kept) for p in module.parameters()}
    del layer[:]
    layer.extend([modules[position] for position in kept])
    if optimizer is None:
        return
    for group in optimizer.param_groups:
        for parameter in [parameter for parameter in group["params"] if id(parameter) in gone]:
            optimizer.state.pop(parameter, None)
        # In place: accelerate and schedulers may hold the list.
        group["params"][:] = [parameter for parameter in group["params"] if id(parameter) not in gone]


def slice_member_(
    model: nn.Module,
    member: Member,
    groups: torch.Tensor,
    num_groups: int,
    optimizer: torch.optim.Optimizer | None = None,
) -> None:
    """Cut one side of one layer down to ``groups``, indices among its ``num_groups`` current groups."""
    module: Any = model.get_submodule(member.module)
    layer: Any = base_layer(module)
    if isinstance(layer, nn.ModuleList):
        _slice_list_(layer, member.positions(groups, num_groups, len(layer)).tolist(), optimizer)
        return
    with whole_weights(module):
        if member.stacked or (member.axis == "experts" and getattr(layer, member.parameter).dim() == 3):
            _slice_experts_(module, member, groups, num_groups, optimizer)
        else:
            _slice_layer_(module, member, groups, num_groups, optimizer)


def _slice_layer_(
    module: Any,
    member: Member,
    groups: torch.Tensor,
    num_groups: int,
    optimizer: torch.optim.Optimizer | None,
) -> None:
    """Cut one side of a layer that holds its whole weights, and of its adapters."""
    layer: Any = base_layer(module)
    index = member.positions(groups, num_groups, axis_length(module, member.axis, member.parameter))
    norms = _dora_norms(module) if member.axis == "input" else {}
    for found in tensor_axes(module, member.axis, member.parameter):
        if found.name == "weight" and is_quantized(layer):
            keep_(layer, found.dim, index)
        else:
            _shrink_(getattr(layer, found.name), _along(found.dim, index), optimizer)
    # An adapter belongs to one parameter: that of a router may be on its rows but not on its bias.
    for tensor, dim in _adapter_tensors(adapter_of(module, member.parameter), member.axis):
        _shrink_(tensor, _along(dim, index), optimizer)
    for name, norm in norms.items():
        # The removed columns were part of the norms; without this, the remaining ones would grow.
        module.lora_magnitude_vector[name].weight.data.mul_(_dora_norms(module)[name] / norm)
    _update_sizes(module, member.axis, member.parameter)


def remember_(model: nn.Module, number: Remembered, value: int) -> None:
    """Set a number that a module derives from a width and reads in its forward pass."""
    module: Any = base_layer(model.get_submodule(number.module))
    owner, _, name = number.name.rpartition(".")
    if owner:  # a config that all blocks share: from now on this module has its own
        if not module.__dict__.get("_loraprune_own_config"):
            setattr(module, owner, copy.copy(getattr(module, owner)))
            module.__dict__["_loraprune_own_config"] = True
        module = getattr(module, owner)
    setattr(module, name, value)


def slice_dimension_(
    model: nn.Module,
    dimension: PrunableDimension,
    positions: Sequence[int],
    num_groups: int,
    optimizer: object | None = None,
) -> None:
    """Cut one prunable dimension: every producer, the consumer, and the widths that modules store.

    Args:
        model: the model or the ``PeftModel`` around it.
        dimension: dimension to cut.
        positions: positions of the current groups that stay, ascending.
        num_groups: current number of groups.
        optimizer: optimizer whose state shrinks with the parameters; may be accelerate's wrapper.
    """
    model = base_model(model)
    groups = torch.as_tensor(positions, dtype=torch.long)
    for member in dimension.all_members:
        slice_member_(model, member, groups, num_groups, raw_optimizer(optimizer))
    for number in dimension.numbers:
        remember_(model, number, number.value(len(positions)))


def slice_(model: nn.Module, structure: Structure, before: Plan, after: Plan, optimizer: object | None = None) -> None:
    """Cut a model from plan ``before`` down to plan ``after``, in place, and free the memory of the rest.

    Raises:
        ValueError: ``after`` keeps a group that ``before`` has removed.
    """
    changed = after.positions_in(before)
    base: Any = base_model(model)
    with apart(base):
        for dimension in structure:
            if dimension.name not in changed:
                continue
            positions, count = changed[dimension.name], before.count(dimension.name)
            slice_dimension_(model, dimension, positions, count, optimizer)
            if dimension.kind == "hidden":
                scale_norms_(base, dimension, positions, count)
            if dimension.kind == "blocks":
                renumber_(base.get_submodule(dimension.consumer.module))
                write_depth_(base.config, structure.spec, positions, count)
