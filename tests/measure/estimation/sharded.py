"""A small Llama whose frozen base is really sharded by torch's FSDP2: what a process holds and what it gathers."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from peft import LoraConfig, get_peft_model
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import LlamaConfig, LlamaForCausalLM


def small_llama() -> Any:
    """With widths that three processes cannot share out evenly, an adapter in 32 bits, and checkpointing."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 176, "num_hidden_layers": 3, "vocab_size": 131}
    config = LlamaConfig(**sizes, num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=False)
    model = get_peft_model(
        LlamaForCausalLM(config).to(torch.bfloat16), LoraConfig(r=4, target_modules=["q_proj", "down_proj"])
    )
    model.base_model.model._set_gradient_checkpointing(enable=True, gradient_checkpointing_func=_checkpoint)
    return model.train()


def _checkpoint(*args: Any, **kwargs: Any) -> Any:
    from torch.utils.checkpoint import checkpoint

    return checkpoint(*args, use_reentrant=False, **kwargs)


class _Collectives(TorchDispatchMode):
    """Bytes that come together in each gather, and the names of all other collective operations."""

    def __init__(self) -> None:
        super().__init__()
        self.gathered: list[int] = []
        self.others: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "c10d":
            if func._schema.name == "c10d::_allgather_base_":
                self.gathered.append(args[0].nbytes)
            else:
                self.others.append(func._schema.name)
        return func(*args, **(kwargs or {}))


def sharded_step(processes: int) -> dict[str, Any]:
    """Shard, and run the forward and the backward pass of one micro-batch; the processes have met already."""
    model = small_llama()
    trained = {parameter for parameter in model.parameters() if parameter.requires_grad}
    mesh = init_device_mesh("cpu", (processes,))
    blocks = model.base_model.model.model.layers
    for block in blocks:
        fully_shard(block, mesh=mesh, ignored_params=trained)
    fully_shard(model, mesh=mesh, ignored_params=trained)
    held = sum(p.to_local().untyped_storage().nbytes() for p in model.parameters() if isinstance(p, DTensor))
    whole = sum(p.nbytes for p in model.parameters() if not isinstance(p, DTensor))
    ids = torch.randint(131, (2, 16))
    with _Collectives() as seen, torch.autocast("cpu", torch.bfloat16):
        loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        forward = list(seen.gathered)
        loss.backward()
    assert all(parameter.grad is not None and not isinstance(parameter.grad, DTensor) for parameter in trained)
    return {
        "held": held,
        "whole": whole,
        "forward": forward,
        "backward": seen.gathered[len(forward) :],
        "others": seen.others,
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    found = sharded_step(dist.get_world_size())
    Path(sys.argv[1], f"{dist.get_rank()}.json").write_text(json.dumps(found))
    dist.destroy_process_group()
