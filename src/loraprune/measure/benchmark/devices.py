"""Device and threads of a benchmark, and their description in the record."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from loraprune.checkpoint.load import default_device
from loraprune.measure.benchmark.memory import counter_of
from loraprune.record.provenance import machine_description, timestamp, versions


def circumstances(device: torch.device, command: str | None) -> dict[str, Any]:
    """Machine, versions, time and command, for the record."""
    machine = machine_description() | {
        "device": str(device),
        "device_name": device_name(device),
        "memory_counter": counter_of(device),
    }
    created = timestamp()
    return {"machine": machine, "versions": versions(), "created": created, "command": command}


def device_name(device: torch.device) -> str:
    """Name of an accelerator or the CPU."""
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    named = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return named or "CPU"


def device_of(name: str | None) -> torch.device:
    """Return the requested device.

    Raises:
        ValueError: this machine has no such device.
    """
    if name is None:
        return default_device()
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"device is {name!r}; name one like cpu, cuda or cuda:1.") from None
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"device is {name!r}; speed is measured on a CPU or with CUDA.")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device is {name!r}, and this machine has {torch.cuda.device_count()} CUDA devices.")
    return torch.device("cuda", torch.cuda.current_device()) if name == "cuda" else device


@contextmanager
def threads(count: int | None) -> Iterator[None]:
    """Limit the CPU threads for the duration of a block; None leaves them unchanged."""
    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
