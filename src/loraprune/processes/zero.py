"""A shared-out base model whose shares DeepSpeed keeps while it is trained (ZeRO-3), and PyTorch's FSDP2 otherwise."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from loraprune.processes.sharding import apart, blocks_of, make_whole_, shards_of, share_again_


@contextmanager
def kept_by_zero3(model: nn.Module, zero: Mapping[str, Any]) -> Iterator[None]:
    """Let DeepSpeed keep the shares of a model for the length of a block; no process holds all weights meanwhile.

    All processes have to do the same. DeepSpeed's engine is made inside, and destroyed before the block ends. Where the
    block ends with an error, the model stays with DeepSpeed.

    Args:
        model: shared out by FSDP2; with its adapter, if the engine gets it so.
        zero: DeepSpeed's configuration of ZeRO; what is ``auto`` there is left to DeepSpeed.
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
            # DeepSpeed puts a function of its own in the place of torch's, and leaves it there.
            torch.nn.functional.linear = linear
        for block in blocks_of(model):
            parameters = _taken_back(block)
            owned = [(owner, name) for owner in block.modules() for name in owner._parameters]
            share_again_([(owner, name) for owner, name in owned if (id(owner), name) in places], mesh)
            _let_go_(parameters, block)
        around = _taken_back(model)
    _let_go_(around, model)


def _taken_back(module: nn.Module) -> list[Any]:
    """Give the parameters of a module that DeepSpeed keeps their whole values; returns them, plain ones again."""
    parameters: list[Any] = [parameter for parameter in module.parameters() if hasattr(parameter, "ds_id")]
    if parameters:
        parameters[0].all_gather(param_list=parameters)
    for parameter in parameters:
        parameter.data = parameter.data.clone()  # of a common buffer
        vars(parameter).clear()
    for inner in module.modules():
        inner._parameters = dict(inner._parameters)
        for name in [name for name in vars(inner) if name.startswith(("ds_", "_external_params"))]:
            delattr(inner, name)
        for hooks in (inner._forward_pre_hooks, inner._forward_hooks):
            for key in [key for key, hook in hooks.items() if hook.__module__.startswith("deepspeed.")]:
                del hooks[key]  # those of the engine, which it leaves there
    return parameters


def _let_go_(parameters: list[Any], module: nn.Module) -> None:
    """Free the values of parameters that a module has no more: DeepSpeed's engine remembers them all."""
    kept = {id(parameter) for parameter in module.parameters()}
    for parameter in parameters:
        if id(parameter) not in kept:
            parameter.data = parameter.data.new_empty(0)
