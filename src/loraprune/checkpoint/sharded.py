"""Loading with weights sharded over the processes of a run (FSDP2): each process reads its own part."""

from __future__ import annotations

from typing import Any

from loraprune.processes.ranks import num_processes
from loraprune.processes.sharding import apart


def sharded_loading() -> dict[str, Any]:
    """Return the arguments of ``from_pretrained`` that shard the weights."""
    from transformers.distributed import DistributedConfig

    return {"distributed_config": DistributedConfig(fsdp_size=num_processes())}


def take_over_(model: Any) -> None:
    """Shard a model that transformers has loaded in this package's own layout, and freeze its weights.

    All that is outside the blocks is gathered at once, because Trainers read the head's weight without calling the
    head. The marks of transformers' sharding are cleared, because a Trainer refuses to save the states of such models.
    """
    with apart(model):
        # Frozen here: later, this would freeze the gathered weights, but not their shards.
        model.requires_grad_(False)
    model._is_distributed_loading_by_transformers = False
    model._tp_size = None  # if set, peft gathers all weights to save an adapter


def forget_(model: Any) -> None:
    """Remove all traces of sharding from a model that is whole again, and from its config."""
    model._device_mesh = model._mesh_manager = model._fsdp_size = None
    if getattr(model.config, "distributed_config", None) is not None:
        del model.config.distributed_config
