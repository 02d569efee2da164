"""What lies under the wrappers that peft, accelerate and torch put around a model or a layer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

from torch import nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def base_model(model: nn.Module) -> PreTrainedModel:
    """The transformers model under ``DistributedDataParallel``, ``torch.compile`` and peft's ``PeftModel``.

    Its module names are those of the architecture; a layer that LoRA adapts is still peft's wrapper there.
    """
    inner: Any = model
    while True:
        if hasattr(inner, "_orig_mod"):
            inner = inner._orig_mod
        elif isinstance(inner, nn.parallel.DistributedDataParallel):
            inner = inner.module
        elif hasattr(inner, "get_base_model"):
            inner = inner.get_base_model()
        else:
            return cast("PreTrainedModel", inner)


def find_module(model: nn.Module, path: str) -> nn.Module | None:
    """A module by its path; None where there is none. A dict of all names would be made anew for every question."""
    try:
        return model.get_submodule(path)
    except AttributeError:
        return None


def base_layer(module: Any) -> nn.Linear:
    """The layer that peft's adapter wraps (one or several of them), or the module itself where none does."""
    return cast("nn.Linear", module.get_base_layer() if hasattr(module, "get_base_layer") else module)


def adapter_of(module: Any, parameter: str) -> Any | None:
    """The wrapper that adapts one parameter of a layer; peft nests one in the other where a layer has several."""
    while hasattr(module, "base_layer"):
        if getattr(module, "parameter_name", "weight") == parameter:
            return module
        module = module.base_layer
    return None


# A model put into evaluation mode for the length of a block, and back as it was.


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Switch ``model`` to evaluation mode (no dropout) and restore every module's own mode afterwards.

    Modules are restored one by one: a model may hold frozen parts that stay in evaluation mode while it trains.
    """
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
