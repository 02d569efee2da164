"""A base model whose weights are shared out among the processes (PyTorch's FSDP2), and how it is cut all the same.

FSDP2 keeps the shapes that parameters had when a module was wrapped. For a cut, :func:`apart` therefore takes the
wrappers off: weights stay shared out, and nothing gathers them. Then one layer or block at a time holds its whole
weights (:func:`whole_weights`) and is changed. At the end, the blocks are wrapped again.
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
    """Whether a tensor is a part of one that the processes have shared out."""
    # Without this module there are no such tensors, and its import takes a while.
    tensors = sys.modules.get("torch.distributed.tensor")
    return tensors is not None and isinstance(tensor, tensors.DTensor)


def is_sharded(model: nn.Module) -> bool:
    """Whether the processes have shared out any weight of a model, even if it is gathered just now."""
    return any(is_shard(parameter) for parameter in model.parameters()) or bool(_wrapped(model))


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """The whole of a tensor, which all processes have to ask for; one that is not shared out is given back as it is."""
    if not is_shard(tensor):
        return tensor
    with torch.no_grad():
        shard: Any = tensor.detach()
        found: torch.Tensor = shard.full_tensor()
    return found


def shards_of(module: nn.Module) -> list[tuple[nn.Module, str, Any]]:
    """Shared-out parameters of a module: who owns them, under which name. A tied one is there for each owner."""
    return [
        (owner, name, parameter)
        for owner in module.modules()
        for name, parameter in owner._parameters.items()
        if is_shard(parameter)
    ]


@contextmanager
def whole_weights(module: nn.Module) -> Iterator[None]:
    """Let a module hold its whole weights for the length of a block; what they have become is shared out again.

    All processes have to do the same. A module that is not shared out stays as it is.
    """
    shards = shards_of(module)
    make_whole_(shards)
    yield
    if shards:
        share_again_([(owner, name) for owner, name, _ in shards], shards[0][2].device_mesh)


def share_again_(places: Sequence[tuple[nn.Module, str]], mesh: Any) -> None:
    """Share out whole parameters, which all processes have alike.

    Args:
        places: modules, and names of parameters that they own. Those that have gone are left out; tied ones stay tied.
        mesh: of the processes.
    """
    from torch.distributed.tensor import DTensor, Shard, distribute_tensor

    again: dict[int, nn.Parameter] = {}
    for owner, name in places:
        now: Any = owner._parameters.get(name)
        if now is None:
            continue
        if id(now) not in again:
            part = distribute_tensor(now.data, mesh, [Shard(0)], src_data_rank=None)
            # A copy: in some versions of PyTorch a part is a view, which would keep the whole in memory.
            own = part.to_local().clone()
            part = DTensor.from_local(own, part.device_mesh, part.placements, shape=part.shape, stride=part.stride())
            again[id(now)] = nn.Parameter(part, requires_grad=now.requires_grad)
        owner._parameters[name] = again[id(now)]


@contextmanager
def whole_for_reading(module: nn.Module) -> Iterator[None]:
    """Let a module hold its whole weights for the length of a block; what becomes of them is forgotten.

    For what looks at a weight several times, each of which would gather it. All processes have to do the same.
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
    """Put whole parameters in the place of shared-out ones; tied ones stay tied. ``placed`` says where they go."""
    found: dict[int, nn.Parameter] = {}
    for owner, name, shard in shards:
        if id(shard) not in found:
            found[id(shard)] = nn.Parameter(placed(whole(shard)), requires_grad=shard.requires_grad)
        owner._parameters[name] = found[id(shard)]


def _wrapped(model: nn.Module) -> list[Any]:
    """Modules that FSDP2 gathers, from the outermost inwards."""
    if "torch.distributed.fsdp" not in sys.modules:
        return []
    from torch.distributed.fsdp import FSDPModule

    return [module for module in model.modules() if isinstance(module, FSDPModule)]


@contextmanager
def apart(model: nn.Module) -> Iterator[None]:
    """Take the wrappers of FSDP2 off a model for the length of a block; nested calls do nothing, nor do plain models.

    What is outside the blocks (embedding, norm, head) is whole meanwhile. Where the block ends with an error, the model
    stays apart.
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
        torch.cuda.empty_cache()  # of streams that are not used any more


def _wrap_(root: nn.Module, mesh: Any, trained: set[nn.Parameter]) -> None:
    """Wrap the blocks of a model, and what is around them; what is trained stays whole in every process."""
    from torch.distributed.fsdp import fully_shard

    for block in blocks_of(root):
        make_whole_(shards_of(block))
        fully_shard(block, mesh=mesh, reshard_after_forward=True, ignored_params=trained)
    fully_shard(root, mesh=mesh, reshard_after_forward=False, ignored_params=trained)


def blocks_of(module: nn.Module) -> Iterator[nn.Module]:
    """The blocks of a model: entries of lists of modules that are in no such list themselves, as experts are."""
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
    """Undo ``fully_shard``, for which PyTorch has no function: hooks, state and class."""
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
                # They hold the weights as they were, and would put them back.
                if getattr(getattr(hook, "hook", hook), "__module__", "").startswith("torch.distributed.fsdp"):
                    del hooks[key]


def gather_(model: nn.Module, *, keep: bool) -> None:
    """Give a model that is not trained any more its whole weights, in the machine's memory, and end the sharing.

    Args:
        model: shared out; all processes have to call this.
        keep: whether this process is to have the weights. The others are left with shapes (on the device ``meta``).
    """
    _unwrap_all_(_wrapped(model))
    place = "cpu" if keep else "meta"
    make_whole_(shards_of(model), lambda full: full.to(place))
    model.to(place)
