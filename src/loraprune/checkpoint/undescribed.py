"""Checkpoints of families without a description: their layers, and a draft of a description."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from loraprune.checkpoint.load import any_auto_class, meta_model
from loraprune.checkpoint.reading import reading
from loraprune.structure.drafting import Stack, draft, outline

if TYPE_CHECKING:
    from transformers import PretrainedConfig


@dataclass(frozen=True)
class Undescribed:
    """Facts about a model without a description.

    Attributes:
        model_class: name of its class.
        num_parameters: number of its parameters.
        stacks: its lists of blocks.
        draft: draft of its description, in YAML.
    """

    model_class: str
    num_parameters: int
    stacks: tuple[Stack, ...]
    draft: str


def look_at(config: PretrainedConfig) -> Undescribed:
    """Find the layers of a model by its config, and draft a description.

    Raises:
        ValueError: neither transformers nor the checkpoint has a class that makes a model of this config.
    """
    auto_class = any_auto_class(config)
    with reading("No model can be made from this config", "Correct config.json.", config.to_dict()):
        model = meta_model(config, auto_class)
    stacks = outline(model)
    return Undescribed(
        model_class=type(model).__name__,
        num_parameters=model.num_parameters(),
        stacks=stacks,
        draft=draft(config, stacks, lambda changed: meta_model(changed, auto_class), auto_class),
    )
