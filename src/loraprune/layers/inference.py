"""A model put into evaluation mode for the length of a block, and back as it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def inference_mode(model: nn.Module) -> Iterator[None]:
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
