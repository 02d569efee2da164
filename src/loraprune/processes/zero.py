"""A sharded base model: DeepSpeed (ZeRO-3) holds the shards during training, PyTorch's FSDP2 otherwise."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from loraprune.processes.sharding import apart, blocks_of, make_whole_, shards_of, share_again_


@contextmanager
def kept_by_zero3(model: nn.Module, zero: Mapping[str, Any]) -> Iterator[None]:
    """Move the shards of a model to DeepSpeed for a ``with`` block; no process holds all weights meanwhile.

    The call is collective. Create DeepSpeed's engine inside the block and destroy it before the block ends. If the
    block raises an error, DeepSpeed keeps the shards.

    Args:
        model: model sharded by FSDP2; with its adapter, if the engine gets one.
        zero: DeepSpeed's ZeRO configuration; values of ``auto`` are left to DeepSpeed.
    """
    from deepspeed.runtime.zero import Init

    known = {name: value for name, value in zero.items() if value != "auto"}
    config = {"train_micro_batch_size_per_gpu": 1, "zero_optimization": known}
    linear = torch.nn.functional.linear
    with apart(model):
        shards = shards_of(model)
        mesh, places = shards[0][2].device_mesh, {(id(owner), name) for owner, name, _ in shards}
        del shards
        for block in blocks_of(model):
            make_whole_(shards_of(block))
            Init(module=block, config_dict_or_path=config)
        try:
            yield
        finally:
            # DeepSpeed replaces this function of torch and does not restore it.
            torch.nn.functional.linear = linear
        for block in blocks_of(model):
            parameters = _taken_back(block)
            owned = [(owner, name) for owner in block.modules() for name in owner._parameters]
            share_again_([(owner, name) for owner, name in owned if (id(owner), name) in places], mesh)
            _let_go_(parameters, block)
        around = _taken_back(model)
    _let_go_(around, model)


def _taken_back(module: nn.Module) -> list[Any]:
    """Gather the parameters that DeepSpeed shards, make them plain parameters again, and return them."""
    parameters: list[Any] = [parameter for parameter in module.parameters() if hasattr(parameter, "ds_id")]
    if parameters:
        parameters[0].all_gather(param_list=parameters)
    for parameter in parameters:
        parameter.data = parameter.data.clone()  # out of a common buffer
        vars(parameter).clear()
    for inner in module.modules():
        inner._parameters = dict(inner._parameters)
        for name in [name for name in vars(inner) if name.startswith(("ds_", "_external_params"))]:
            delattr(inner, name)
        for hooks in (inner._forward_pre_hooks, inner._forward_hooks):
            for key in [key for key, hook in hooks.items() if hook.__module__.startswith("deepspeed.")]:
                del hooks[key]  # the engine does not remove its hooks
    return parameters


def _let_go_(parameters: list[Any], module: nn.Module) -> None:
    """Free parameters that a module no longer has; DeepSpeed's engine still refers to them."""
    kept = {id(parameter) for parameter in module.parameters()}
    for parameter in parameters:
        if id(parameter) not in kept:
            parameter.data = parameter.data.new_empty(0)
