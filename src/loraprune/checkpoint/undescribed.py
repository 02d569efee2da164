"""A checkpoint of a family that has no description: its layers, and a start for one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from loraprune.checkpoint.load import meta_model
from loraprune.structure.drafting import Stack, draft, outline

if TYPE_CHECKING:
    from transformers import PretrainedConfig

_AUTO_CLASSES = (
    "AutoModelForCausalLM",
    "AutoModelForSeq2SeqLM",
    "AutoModelForMaskedLM",
    "AutoModelForImageClassification",
    "AutoModelForSequenceClassification",
    "AutoModel",
)
"""Where to look for a class, first choice first."""


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
    try:
        model = meta_model(config, auto_class)
    except Exception as error:
        raise ValueError(f"No model can be made from this config: {type(error).__name__}: {error}") from error
    stacks = outline(model)
    return Undescribed(
        model_class=type(model).__name__,
        num_parameters=model.num_parameters(),
        stacks=stacks,
        draft=draft(config, stacks, lambda changed: meta_model(changed, auto_class), auto_class),
    )


def any_auto_class(config: PretrainedConfig) -> str:
    """The class of transformers that makes the model that the config names, or else the first that makes any.

    Raises:
        ValueError: none does.
    """
    brought = getattr(config, "auto_map", None) or {}
    made = {
        name: {brought[name].rpartition(".")[2]} if name in brought else _makes(name, config) for name in _AUTO_CLASSES
    }
    named = set(getattr(config, "architectures", None) or ())
    for name in (*(name for name in made if made[name] & named), *(name for name in made if made[name])):
        return name
    raise ValueError(
        f"transformers has a config for models of type {config.model_type!r}, but none of these classes makes one: "
        f"{', '.join(_AUTO_CLASSES)}."
    )


def _makes(auto_class: str, config: PretrainedConfig) -> set[str]:
    """Names of the model classes that a class of transformers makes of such a config."""
    import transformers

    mapping = getattr(transformers, auto_class)._model_mapping
    if type(config) not in mapping:
        return set()
    found = mapping[type(config)]
    return {each.__name__ for each in (found if isinstance(found, tuple | list) else (found,))}
