"""Checkpoints whose weights the processes of a run share among themselves (FSDP2): each reads its own part."""

from __future__ import annotations

from typing import Any

from loraprune.processes.ranks import num_processes
from loraprune.processes.sharding import apart


def sharded_loading() -> dict[str, Any]:
    """What ``from_pretrained`` has to be told."""
    from transformers.distributed import DistributedConfig

    return {"distributed_config": DistributedConfig(fsdp_size=num_processes())}


def take_over_(model: Any) -> None:
    """Make the sharing of a model that transformers has loaded our own.

    What is around its blocks is gathered as one: Trainers read the head's weight without calling the head. And no
    Trainer is to refuse to save states, which it does for models that know that they were loaded so.
    """
    with apart(model):
        # Now: later, what is gathered at that time would be frozen, and the shares of it would not.
        model.requires_grad_(False)
    model._is_distributed_loading_by_transformers = False
    model._tp_size = None  # from which peft would gather all weights to save an adapter


def forget_(model: Any) -> None:
    """Let a model that is whole again say nothing of processes, in its config or elsewhere."""
    model._device_mesh = model._mesh_manager = model._fsdp_size = None
    if getattr(model.config, "distributed_config", None) is not None:
        del model.config.distributed_config
