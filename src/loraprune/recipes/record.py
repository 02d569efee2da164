"""What was done, on what, with which versions: the record that goes into ``pruning.json``."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
from typing import Any

import torch

from loraprune import __version__
from loraprune.plan import Plan

PACKAGES = ("torch", "transformers", "peft", "trl", "datasets", "accelerate", "safetensors")


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that shape a result."""
    found = {"python": platform.python_version(), "loraprune": __version__}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


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
    base: str, settings: dict[str, Any], metrics: dict[str, Any], plan: Plan, command: str | None
) -> dict[str, Any]:
    """Everything about a run as plain values."""
    return {
        "base_model": base,
        "created": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "command": command,
        "settings": settings,
        "metrics": metrics,
        "plan": plan.to_json(),
        "versions": versions(),
        "machine": machine_description(),
    }
