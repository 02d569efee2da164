"""Cuts of a base model whose weights are sharded over the processes (PyTorch's FSDP2).

FSDP2 keeps the shapes that parameters had when a module was wrapped. For a cut, :func:`apart` therefore removes the
wrappers; the weights stay sharded. Then one layer or block at a time gets its whole weights (:func:`whole_weights`)
and is changed. At the end, the blocks are wrapped again.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import torch
from torch import nn


def is_shard(tensor: object) -> bool:
    """Return whether a tensor is a shard of one."""
    # If this module was never imported, there are no such tensors; its import is slow.
    tensors = sys.modules.get("torch.distributed.tensor")
    return tensors is not None and isinstance(tensor, tensors.DTensor)


def is_sharded(model: nn.Module) -> bool:
    """Return whether any weight of a model is sharded, even if it is gathered at the moment."""
    return any(is_shard(parameter) for parameter in model.parameters()) or bool(_wrapped(model))


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """Return the whole of a sharded tensor, in a collective call; return a plain tensor as it is."""
    if not is_shard(tensor):
        return tensor
    with torch.no_grad():
        shard: Any = tensor.detach()
        found: torch.Tensor = shard.full_tensor()
    return found


def shards_of(module: nn.Module) -> list[tuple[nn.Module, str, Any]]:
    """Return the sharded parameters of a module with their owners and names; a tied one appears for each owner."""
    return [
        (owner, name, parameter)
        for owner in module.modules()
        for name, parameter in owner._parameters.items()
        if is_shard(parameter)
    ]


@contextmanager
def whole_weights(module: nn.Module) -> Iterator[None]:
    """Give a module its whole weights for a ``with`` block, then shard the changed weights again.

    The call is collective. A module that is not sharded stays as it is.
    """
    shards = shards_of(module)
    make_whole_(shards)
    yield
    if shards:
        share_again_([(owner, name) for owner, name, _ in shards], shards[0][2].device_mesh)


def share_again_(places: Sequence[tuple[nn.Module, str]], mesh: Any) -> None:
    """Shard whole parameters, which are the same in all processes.

    Args:
        places: modules and the names of their parameters. Missing ones are skipped; tied ones stay tied.
        mesh: device mesh of the processes.
    """
    from torch.distributed.tensor import DTensor, Shard, distribute_tensor

    again: dict[int, nn.Parameter] = {}
    for owner, name in places:
        now: Any = owner._parameters.get(name)
        if now is None:
            continue
        if id(now) not in again:
            part = distribute_tensor(now.data, mesh, [Shard(0)], src_data_rank=None)
            # A copy, because in some versions of PyTorch a shard is a view that keeps the whole in memory.
            own = part.to_local().clone()
            part = DTensor.from_local(own, part.device_mesh, part.placements, shape=part.shape, stride=part.stride())
            again[id(now)] = nn.Parameter(part, requires_grad=now.requires_grad)
        owner._parameters[name] = again[id(now)]


@contextmanager
def whole_for_reading(module: nn.Module) -> Iterator[None]:
    """Give a module its whole weights for a ``with`` block, and drop any changes to them.

    Saves gathering a weight each time it is read. The call is collective.
    """
    shards = shards_of(module)
    make_whole_(shards)
    try:
        yield
    finally:
        for owner, name, shard in shards:
            owner._parameters[name] = shard


def make_whole_(
    shards: list[tuple[nn.Module, str, Any]], placed: Callable[[torch.Tensor], torch.Tensor] = lambda full: full
) -> None:
    """Replace sharded parameters by whole ones; tied ones stay tied. ``placed`` moves the whole tensors."""
    found: dict[int, nn.Parameter] = {}
    for owner, name, shard in shards:
        if id(shard) not in found:
            found[id(shard)] = nn.Parameter(placed(whole(shard)), requires_grad=shard.requires_grad)
        owner._parameters[name] = found[id(shard)]


def _wrapped(model: nn.Module) -> list[Any]:
    """Return the modules that FSDP2 wraps, outermost first."""
    if "torch.distributed.fsdp" not in sys.modules:
        return []
    from torch.distributed.fsdp import FSDPModule

    return [module for module in model.modules() if isinstance(module, FSDPModule)]


@contextmanager
def apart(model: nn.Module) -> Iterator[None]:
    """Remove the wrappers of FSDP2 from a model for a ``with`` block; without wrappers, do nothing.

    Parameters outside the model's blocks (embedding, norm, head) are whole meanwhile. If the ``with`` block raises an
    error, the model stays unwrapped.
    """
    wrapped = _wrapped(model)
    if not wrapped:
        yield
        return
    root = wrapped[0]
    _unwrap_all_(wrapped)
    shards = shards_of(root)
    mesh = shards[0][2].device_mesh
    trained = {parameter for parameter in root.parameters() if parameter.requires_grad and not is_shard(parameter)}
    inside = {id(module) for block in blocks_of(root) for module in block.modules()}
    make_whole_([shard for shard in shards if id(shard[0]) not in inside])
    del shards
    yield
    _wrap_(root, mesh, trained)
    if mesh.device_type == "cuda":
        torch.cuda.empty_cache()  # memory of streams that are no longer used


def _wrap_(root: nn.Module, mesh: Any, trained: set[nn.Parameter]) -> None:
    """Wrap the blocks of a model and the model itself; trained parameters stay whole in every process."""
    from torch.distributed.fsdp import fully_shard

    for block in blocks_of(root):
        make_whole_(shards_of(block))
        fully_shard(block, mesh=mesh, reshard_after_forward=True, ignored_params=trained)
    fully_shard(root, mesh=mesh, reshard_after_forward=False, ignored_params=trained)


def blocks_of(module: nn.Module) -> Iterator[nn.Module]:
    """Yield the blocks of a model: entries of its outermost module lists (lists of experts lie inside these)."""
    for child in module.children():
        if isinstance(child, nn.ModuleList):
            yield from child
        else:
            yield from blocks_of(child)


def _unwrap_all_(wrapped: list[Any]) -> None:
    for module in wrapped:
        module.reshard()
    for module in wrapped:
        _unwrap_(module)


def _unwrap_(module: Any) -> None:
    """Undo ``fully_shard`` (hooks, state and class); PyTorch has no function for that."""
    from torch.distributed import _composable_state

    state = module._get_fsdp_state()
    state._pre_forward_hook_handle.remove()
    state._post_forward_hook_handle.remove()
    keys = import_module("torch.distributed._composable.contract")
    for key in (keys.STATE_KEY, keys.REGISTRY_KEY):
        module.__dict__.pop(key, None)
    _composable_state._module_state_mapping.pop(module, None)
    module.__class__ = type(module).__mro__[2]
    for inner in module.modules():
        for mark in ("_is_fsdp_managed_module", "_fsdp_use_orig_params"):
            inner.__dict__.pop(mark, None)
        for hooks in (inner._state_dict_pre_hooks, inner._load_state_dict_pre_hooks, inner._load_state_dict_post_hooks):
            for key, hook in list(hooks.items()):
                # These hooks hold the old weights and would restore them.
                if getattr(getattr(hook, "hook", hook), "__module__", "").startswith("torch.distributed.fsdp"):
                    del hooks[key]


def gather_(model: nn.Module, *, keep: bool) -> None:
    """Gather the whole weights of a trained model in CPU memory, and end the sharding. The call is collective.

    Args:
        model: sharded model.
        keep: keep the weights in this process; otherwise it has only shapes (on the device ``meta``).
    """
    _unwrap_all_(_wrapped(model))
    place = "cpu" if keep else "meta"
    make_whole_(shards_of(model), lambda full: full.to(place))
    model.to(place)
