"""Declarative descriptions of the supported model families, looked up by ``config.model_type``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from loraprune.architectures import llama
from loraprune.architectures.spec import ArchitectureSpec, ConfigKeys, DimensionSpec, MemberSpec

if TYPE_CHECKING:
    from transformers import PretrainedConfig

__all__ = [
    "ArchitectureSpec",
    "ConfigKeys",
    "DimensionSpec",
    "MemberSpec",
    "UnsupportedArchitectureError",
    "register",
    "spec_for",
    "supported",
    "unsupported",
]

_SPECS: dict[str, ArchitectureSpec] = {spec.model_type: spec for spec in llama.SPECS}


class UnsupportedArchitectureError(ValueError):
    """The model family has no description."""


def register(spec: ArchitectureSpec) -> None:
    """Make a family known under its ``model_type``; a later description replaces an earlier one."""
    _SPECS[spec.model_type] = spec


def supported() -> tuple[str, ...]:
    """Model types that can be pruned."""
    return tuple(sorted(_SPECS))


def spec_for(config: PretrainedConfig) -> ArchitectureSpec:
    """Find the description of a model family.

    Raises:
        UnsupportedArchitectureError: there is none; the message lists those there are.
    """
    spec = _SPECS.get(config.model_type)
    if spec is None:
        raise UnsupportedArchitectureError(unsupported(config.model_type))
    return spec


def unsupported(model_type: str) -> str:
    """What to tell the owner of a model whose family has no description."""
    return (
        f"Models of type {model_type!r} are not supported; supported: {', '.join(supported())}. A family can be "
        "described in a few lines: see loraprune.architectures.register and docs/architectures.md."
    )
