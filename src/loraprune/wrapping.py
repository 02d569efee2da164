"""What lies under the wrappers that peft, accelerate and torch put around a model or a layer."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from torch import nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def base_model(model: nn.Module) -> PreTrainedModel:
    """The transformers model under ``DistributedDataParallel``, ``torch.compile`` and peft's ``PeftModel``.

    Its module names are those of the architecture; a layer that LoRA adapts is still peft's wrapper there.
    """
    while True:
        if hasattr(model, "_orig_mod"):
            model = model._orig_mod
        elif isinstance(model, nn.parallel.DistributedDataParallel):
            model = model.module
        elif hasattr(model, "get_base_model"):
            model = model.get_base_model()
        else:
            return cast("PreTrainedModel", model)


def base_layer(module: nn.Module) -> nn.Module:
    """The layer that peft's adapter wraps, or the module itself where none does."""
    return module.get_base_layer() if hasattr(module, "get_base_layer") else module
