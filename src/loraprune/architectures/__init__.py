"""Declarative descriptions of the supported model families, looked up by ``config.model_type``."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from loraprune.architectures import (
    alibi,
    bert,
    convnext,
    deepseek,
    falcon,
    gpt,
    llama,
    llama_relatives,
    moe,
    phi,
    t5,
    vit,
)
from loraprune.architectures.reading import read_spec
from loraprune.architectures.spec import (
    ArchitectureSpec,
    ConfigKeys,
    DimensionSpec,
    MemberSpec,
    Number,
    StackSpec,
)
from loraprune.architectures.values import DescriptionError

if TYPE_CHECKING:
    from transformers import PretrainedConfig

__all__ = [
    "PREFIX",
    "ArchitectureSpec",
    "ConfigKeys",
    "DescriptionError",
    "DimensionSpec",
    "MemberSpec",
    "Number",
    "StackSpec",
    "UnsupportedArchitectureError",
    "read_spec",
    "register",
    "spec_for",
    "supported",
    "unsupported",
]

PREFIX = "loraprune_"
"""What the model type of a checkpoint that needs our modeling file begins with."""

Description = ArchitectureSpec | Callable[["PretrainedConfig"], ArchitectureSpec]
"""A description, or a choice between several by the config, for families with more than one layout."""

_FAMILIES = (
    llama,
    llama_relatives,
    gpt,
    t5,
    bert,
    vit,
    convnext,
    moe,
)
_SPECS: dict[str, Description] = {spec.model_type: spec for family in _FAMILIES for spec in family.SPECS}
for _family in (deepseek, phi, falcon, alibi):
    _SPECS.update(_family.BY_CONFIG)


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
    found = _SPECS.get(config.model_type.removeprefix(PREFIX))
    if found is None:
        raise UnsupportedArchitectureError(unsupported(config.model_type))
    return found if isinstance(found, ArchitectureSpec) else found(config)


def unsupported(model_type: str) -> str:
    """What to tell the owner of a model whose family has no description."""
    return (
        f"Models of type {model_type!r} are not supported; supported: {', '.join(supported())}. A family can be "
        "described in a few lines: `loraprune inspect MODEL --draft FILE.yaml` starts, docs/architectures.md explains."
    )
