"""A checkpoint of a family that has no description: its layers, and a start for one."""

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
    """What can be said about a model without a description.

    Attributes:
        model_class: name of its class.
        num_parameters: of the model.
        stacks: its lists of blocks.
        draft: a start for its description, in YAML.
    """

    model_class: str
    num_parameters: int
    stacks: tuple[Stack, ...]
    draft: str


def look_at(config: PretrainedConfig) -> Undescribed:
    """Find the layers of a model by its config, and start a description.

    Raises:
        ValueError: no class of transformers, and none that the checkpoint brings, makes a model of this config.
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
