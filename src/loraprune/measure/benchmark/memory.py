"""Peak memory of a call (from the accelerator's allocator, or from live tensors on a CPU), and free memory."""

from __future__ import annotations

import functools
import os
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from loraprune.layers.quantized.layers import stored_bytes_of
from loraprune.layers.quantized.models import quantized_layers

CPU_COUNTER = "live tensors"
CUDA_COUNTER = "the CUDA allocator"


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of live tensors that are used or created while it is active, because a CPU has no such counter.

    Temporary allocations inside a kernel are not seen.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._live: dict[int, tuple[int, Any]] = {}
        self.now = self.peak = 0

    def _forget(self, key: int, reference: object) -> None:
        self.now -= self._live.pop(key)[0]

    def count(self, value: object) -> None:
        """Count a tensor that was used or created, if it is new."""
        if isinstance(value, torch.Tensor):
            storage = value.untyped_storage()
            key = storage._cdata
            if key not in self._live:
                self._live[key] = (storage.nbytes(), weakref.ref(storage, functools.partial(self._forget, key)))
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        tree_map(self.count, (args, kwargs, result))
        return result


def peak_bytes(call: Callable[[], object], device: torch.device, *, held: int = 0) -> int:
    """Return the peak bytes of tensors during a call.

    Args:
        call: call to watch.
        device: device of the call.
        held: bytes on the device that belong to the call and existed before it, such as the model's weights. On an
            accelerator, everything else (other models) must not count. On a CPU, only what the call uses counts.
    """
    if device.type != "cuda":
        with LiveBytes() as live:
            call()
        return live.peak
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    call()
    torch.cuda.synchronize(device)
    return held + torch.cuda.max_memory_allocated(device) - before


def allocated_bytes(device: torch.device) -> int:
    """Currently allocated bytes on an accelerator; 0 on a CPU, which does not count them."""
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else 0


def counter_of(device: torch.device) -> str:
    """Method of measuring memory on a device, for the record."""
    return CUDA_COUNTER if device.type == "cuda" else CPU_COUNTER


def weight_bytes(model: nn.Module) -> int:
    """Bytes of a model's parameters and buffers in memory. Shared ones count once, and quantized ones as stored."""
    quantized = {id(layer.weight): layer for _, layer in quantized_layers(model)}
    plain = {
        value.untyped_storage().data_ptr(): value.untyped_storage().nbytes()
        for value in (*model.parameters(), *model.buffers())
        if id(value) not in quantized
    }
    return sum(plain.values()) + sum(stored_bytes_of(layer) for layer in quantized.values())


def state_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Bytes of the optimizer's states for the parameters."""
    states = (value for state in optimizer.state.values() for value in state.values())
    return sum(value.untyped_storage().nbytes() for value in states if isinstance(value, torch.Tensor))


def free_memory(device: torch.device) -> int:
    """Free bytes on an accelerator, or in CPU memory."""
    if device.type == "cuda":
        # Memory that torch has cached is reported as used.
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + kept
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return 1 << 62
