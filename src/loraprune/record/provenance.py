"""Time, machine and library versions of a run."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
from collections.abc import Sequence
from typing import Any

from loraprune._version import __version__


def timestamp() -> str:
    """Return the current UTC time in ISO 8601, to the second."""
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")


_PACKAGES = ("torch", "transformers", "peft", "trl", "datasets", "accelerate", "safetensors")


def versions(further: Sequence[str] = ()) -> dict[str, str]:
    """Return the versions of Python and of the installed packages that affect results.

    Args:
        further: additional packages to look up.
    """
    found = {"python": platform.python_version(), "loraprune": __version__}
    for package in (*_PACKAGES, *further):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def machine_description() -> dict[str, Any]:
    """Describe the machine, as far as it affects speed and reproducibility."""
    import torch

    description: dict[str, Any] = {
        "platform": platform.platform(terse=True),
        "processor": platform.machine(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }
    if torch.cuda.is_available():
        description["accelerator"] = torch.cuda.get_device_name(0)
    return description
