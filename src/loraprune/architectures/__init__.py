"""Declarative descriptions of the supported model families, looked up by ``config.model_type``."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from loraprune.architectures.alibi import ALIBI_BY_CONFIG
from loraprune.architectures.bert import BERT_SPECS
from loraprune.architectures.convnext import CONVNEXT_SPECS
from loraprune.architectures.deepseek import DEEPSEEK_BY_CONFIG
from loraprune.architectures.falcon import FALCON_BY_CONFIG
from loraprune.architectures.gpt import GPT_SPECS
from loraprune.architectures.llama import LLAMA_SPECS
from loraprune.architectures.llama_relatives import LLAMA_RELATIVES_SPECS
from loraprune.architectures.moe import MOE_SPECS
from loraprune.architectures.phi import PHI_BY_CONFIG
from loraprune.architectures.reading import read_spec
from loraprune.architectures.spec import (
    ArchitectureSpec,
    ConfigKeys,
    DimensionSpec,
    MemberSpec,
    Number,
    StackSpec,
)
from loraprune.architectures.t5 import T5_SPECS
from loraprune.architectures.values import DescriptionError
from loraprune.architectures.vit import VIT_SPECS

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
"""Prefix of the model type of checkpoints that need our modeling file."""

Description = ArchitectureSpec | Callable[["PretrainedConfig"], ArchitectureSpec]
"""A description, or a function that selects one by the config, for families with several layouts."""

_SPECS: dict[str, Description] = {
    spec.model_type: spec
    for spec in (
        *LLAMA_SPECS,
        *LLAMA_RELATIVES_SPECS,
        *GPT_SPECS,
        *T5_SPECS,
        *BERT_SPECS,
        *VIT_SPECS,
        *CONVNEXT_SPECS,
        *MOE_SPECS,
    )
}
_SPECS |= {**DEEPSEEK_BY_CONFIG, **PHI_BY_CONFIG, **FALCON_BY_CONFIG, **ALIBI_BY_CONFIG}


class UnsupportedArchitectureError(ValueError):
    """The model family has no description."""


def register(spec: ArchitectureSpec) -> None:
    """Register a family under its ``model_type``; a later description replaces an earlier one."""
    _SPECS[spec.model_type] = spec


def supported() -> tuple[str, ...]:
    """Return the supported model types."""
    return tuple(sorted(_SPECS))


def spec_for(config: PretrainedConfig) -> ArchitectureSpec:
    """Find the description of a model family.

    Raises:
        UnsupportedArchitectureError: there is none; the message lists the supported types.
    """
    found = _SPECS.get(config.model_type.removeprefix(PREFIX))
    if found is None:
        raise UnsupportedArchitectureError(unsupported(config.model_type))
    return found if isinstance(found, ArchitectureSpec) else found(config)


def unsupported(model_type: str) -> str:
    """Return the message for a model whose family has no description."""
    return (
        f"Models of type {model_type!r} are not supported. Supported types: {', '.join(supported())}. You can describe "
        "a family in a few lines: start with `loraprune inspect MODEL --draft FILE.yaml`; see docs/architectures.md."
    )
