"""Access to models and layers under the wrappers of peft, accelerate and torch."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

from torch import nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def base_model(model: nn.Module) -> PreTrainedModel:
    """Return the transformers model under ``DistributedDataParallel``, ``torch.compile`` and peft's ``PeftModel``.

    Its module names are those of the architecture; layers that LoRA adapts are still peft's wrappers.
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
    """Return a module by its path, or None. Unlike a dict of all names, this does not rebuild anything per call."""
    try:
        return model.get_submodule(path)
    except AttributeError:
        return None


def base_layer(module: Any) -> nn.Linear:
    """Return the layer under one or several of peft's adapters, or the module itself if it has none."""
    return cast("nn.Linear", module.get_base_layer() if hasattr(module, "get_base_layer") else module)


def adapter_of(module: Any, parameter: str) -> Any | None:
    """Return the wrapper that adapts one parameter of a layer; peft nests wrappers if a layer has several."""
    while hasattr(module, "base_layer"):
        if getattr(module, "parameter_name", "weight") == parameter:
            return module
        module = module.base_layer
    return None


# A model that is switched inside a ``with`` block and restored afterwards.


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Switch ``model`` to evaluation mode (no dropout), and restore every module's own mode afterwards.

    Modules are restored one by one, because a model may hold frozen parts that stay in evaluation mode in training.
    """
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def gradients_only(model: nn.Module, parameters: Collection[nn.Parameter]) -> Iterator[None]:
    """Let only some parameters of ``model`` require gradients, and restore what each required afterwards."""
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    chosen = {id(parameter) for parameter in parameters}
    try:
        for parameter, _ in flags:
            parameter.requires_grad_(id(parameter) in chosen)
        yield
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)


def own_forward(module: nn.Module) -> Callable[..., Any] | None:
    """Return the ``forward`` that is set on a module itself; None if it has that of its class."""
    found: Callable[..., Any] | None = module.__dict__.get("forward")
    return found


def give_back_forward_(module: nn.Module, own: Callable[..., Any] | None) -> None:
    """Undo a replacement of ``forward``; ``own`` is what :func:`own_forward` returned before it."""
    if own is None:
        module.__dict__.pop("forward", None)
    else:
        module.forward = own
