"""How many sequences a block is running on: layers inside it may see the tokens of all of them in one row."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from torch import nn


def _first_tensor(values: Iterable[Any]) -> torch.Tensor:
    return next(value for value in values if isinstance(value, torch.Tensor))


class SequenceCounts:
    """Sequences that each block was last called with, read off its hidden states.

    Args:
        model: the transformers model.
        blocks: names of its blocks.
    """

    def __init__(self, model: nn.Module, blocks: Iterable[str]) -> None:
        self._counts: dict[str, int] = {}
        self._handles = [
            model.get_submodule(name).register_forward_pre_hook(self._hook(name), with_kwargs=True) for name in blocks
        ]

    def _hook(self, name: str) -> Any:
        def count(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            # A block's hidden states come first, or by name before anything else that is a tensor.
            self._counts[name] = _first_tensor((*args, kwargs.get("hidden_states"), *kwargs.values())).shape[0]

        return count

    def of(self, block: str) -> int:
        """Sequences in the forward pass that the block is in."""
        return self._counts[block]

    def remove(self) -> None:
        """Stop counting."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
