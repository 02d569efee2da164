"""Versions of what shapes a result."""

from __future__ import annotations

import importlib.metadata
import platform

from loraprune._version import __version__

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
