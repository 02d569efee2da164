"""What was done, on what, with which versions: the record that goes into ``pruning.json``."""

from __future__ import annotations

import math
import os
import platform
from typing import Any

import numpy as np
import torch

from loraprune.record.timestamp import timestamp
from loraprune.record.versions import versions
from loraprune.structure.plan import Plan


def machine_description() -> dict[str, Any]:
    """The machine, as far as speed and reproducibility depend on it."""
    description: dict[str, Any] = {
        "platform": platform.platform(terse=True),
        "processor": platform.machine(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }
    if torch.cuda.is_available():
        description["accelerator"] = torch.cuda.get_device_name(0)
    return description


def run_record(
    base: str, task: str, settings: dict[str, Any], metrics: dict[str, Any], plan: Plan, command: str | None
) -> dict[str, Any]:
    """Everything about a run as plain values."""
    record: dict[str, Any] = {
        "base_model": base,
        "task": task,
        "created": timestamp(),
        "command": command,
        "settings": settings,
        "metrics": metrics,
        "plan": plan.to_json(),
        "versions": versions(),
        "machine": machine_description(),
    }
    found: dict[str, Any] = plain(record)
    return found


def plain(value: Any) -> Any:
    """The value as JSON and YAML can write it: numbers of NumPy as Python's own, NaN and infinities as None."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
