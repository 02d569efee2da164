"""Linear layers that peft would take for experts by their names."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedModel

EXPERT_NAMES = ("gate_proj", "up_proj", "down_proj")


def renamed_layers(layers: Collection[str], model: PreTrainedModel) -> set[str]:
    """Find the layers that peft does not adapt when they are named among the ``target_modules`` of a ``LoraConfig``.

    In older versions of transformers each expert was a module of linear layers; today their weights are stacked in one
    parameter. peft takes the old names for the new parameters in every mixture of experts, also where dense or shared
    FFNs have layers of those names. ``NAME.weight`` among the ``target_parameters`` reaches these.

    Args:
        layers: full names of linear layers.
        model: that they belong to.
    """
    from peft import LoraConfig

    try:
        from peft.utils.transformers_weight_conversion import (
            convert_peft_config_for_transformers,
            get_model_conversion_mapping,
        )
    except ImportError:  # a peft that does not know of the change
        return set()
    names = {layer.rpartition(".")[2] for layer in layers}
    probe = LoraConfig(target_modules=sorted(names.union(EXPERT_NAMES)))
    convert_peft_config_for_transformers(probe, model=model, conversions=get_model_conversion_mapping(model))
    left = set(probe.target_modules or ())
    return {layer for layer in layers if layer.rpartition(".")[2] not in left}
