"""What can go wrong on the way to another runtime."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType


class RuntimeFormatError(ValueError):
    """A checkpoint cannot be written in a format; the message says why, and what can load it instead."""


def require(module: str, package: str, purpose: str) -> ModuleType:
    """Import a module of an optional package.

    Args:
        module: name to import.
        package: what pip calls it.
        purpose: what it is needed for, as the subject of the message.

    Raises:
        RuntimeFormatError: it is not installed; the message holds the command that installs it.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != module.partition(".")[0]:
            raise
        raise RuntimeFormatError(f"{purpose} needs the package {package}: pip install {package}") from error
