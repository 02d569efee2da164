"""The ``forward`` that is set on a module itself, such as by accelerate, which a replacement has to give back."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn


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
