"""Gates on whole blocks: what each adds to the hidden states that come in."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import nn

from loraprune.importance.evidence.gate_squares import GateSquares
from loraprune.importance.evidence.gradient_tap import listen


def entering(args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor:
    """The hidden states that a block was called with."""
    hidden: torch.Tensor = args[0] if args else kwargs["hidden_states"]
    return hidden


class BlockGates:
    """Gates of value 1 on what blocks add: ``output = input + gate · (output − input)``.

    The gradient of the loss with respect to a gate is ``Σ_tokens Σ_features (∂L/∂output · (output − input))``. Both
    tensors are kept for the backward pass anyway.

    Args:
        blocks: the list of blocks; blocks that leave it take their gates along.
        anchor: see :func:`loraprune.importance.evidence.gradient_tap.listen`.
    """

    def __init__(self, blocks: nn.ModuleList, anchor: torch.Tensor) -> None:
        self._blocks = blocks
        self._anchor = anchor
        self._squares: dict[nn.Module, GateSquares] = {}
        self._handles = [block.register_forward_hook(self._gate, with_kwargs=True) for block in blocks]

    def _gate(self, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        if not torch.is_grad_enabled():
            return None
        hidden = output[0] if isinstance(output, tuple) else output
        heard = partial(self._hear, block, entering(args, kwargs).detach())
        gated = listen(hidden, self._anchor, heard)
        return (gated, *output[1:]) if isinstance(output, tuple) else gated

    def _hear(self, block: nn.Module, before: torch.Tensor, after: torch.Tensor, gradients: torch.Tensor) -> None:
        squares = self._squares.setdefault(block, GateSquares((after.shape[-1],)))
        squares.add(after - before, gradients)

    def take(self) -> torch.Tensor | None:
        """Mean squares since the last call, one for each block that there is now; None when there were none."""
        # What is left of blocks that are gone is dropped, lest it keep them in memory.
        squares, self._squares = self._squares, {}
        taken = [squares[block].take() if block in squares else None for block in self._blocks]
        found = [value for value in taken if value is not None]
        return torch.cat(found) if len(found) == len(taken) else None

    def remove(self) -> None:
        """Take the gates off."""
        for handle in self._handles:
            handle.remove()
