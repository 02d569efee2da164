"""Gates on the residual stream: on its channels, and on what whole blocks add to it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from loraprune.importance.evidence.gate_squares import GateSquares, gate_gradients
from loraprune.importance.evidence.gradient_tap import listen
from loraprune.processes.ranks import mean_square


class StreamGates:
    """One gate per channel, which multiplies that channel of the embedding and of every layer that writes the stream.

    The gradient of a gate is summed over the writers for each sequence, and squared only after that. The backward pass
    reaches the writers first and the embedding last, because all others depend on it.

    Args:
        embedding: first writer of the stream.
        writers: layers of the blocks that add to the stream.
        anchor: see :func:`loraprune.importance.evidence.gradient_tap.listen`.
    """

    def __init__(self, embedding: nn.Module, writers: Sequence[nn.Module], anchor: torch.Tensor) -> None:
        self._pending: torch.Tensor | None = None
        self._total: torch.Tensor | None = None
        self._sequences = 0
        self._anchor = anchor
        self._handles = [writer.register_forward_hook(self._hook(self._add)) for writer in writers]
        self._handles.append(embedding.register_forward_hook(self._hook(self._finish)))

    def _hook(self, heard: Callable[[torch.Tensor, torch.Tensor], None]) -> Any:
        def gate(module: nn.Module, args: Any, output: torch.Tensor) -> torch.Tensor | None:
            return listen(output, self._anchor, heard) if torch.is_grad_enabled() else None

        return gate

    def _add(self, written: torch.Tensor, gradients: torch.Tensor) -> None:
        part = gate_gradients(written, gradients, (1,))
        self._pending = part if self._pending is None else self._pending + part

    def _finish(self, written: torch.Tensor, gradients: torch.Tensor) -> None:
        self._add(written, gradients)
        assert self._pending is not None
        squares = self._pending.square().sum(0)
        self._total = squares if self._total is None else self._total + squares
        self._sequences += len(self._pending)
        self._pending = None

    def take(self) -> torch.Tensor | None:
        """Return mean squares since the last call, shape ``(hidden,)``; None if there were none."""
        total, sequences = self._total, self._sequences
        self._pending = self._total = None
        self._sequences = 0
        return None if total is None else mean_square(total, sequences)

    def remove(self) -> None:
        """Remove the gates."""
        for handle in self._handles:
            handle.remove()


# Gates on whole blocks: on what each adds to its incoming hidden states.


def entering(args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor:
    """Return the hidden states that a block was called with."""
    hidden: torch.Tensor = args[0] if args else kwargs["hidden_states"]
    return hidden


class BlockGates:
    """Gates of value 1 on what blocks add: ``output = input + gate · (output − input)``.

    The gradient of the loss with respect to a gate is ``Σ_tokens Σ_features (∂L/∂output · (output − input))``. Both
    tensors are kept for the backward pass anyway.

    Args:
        blocks: list of blocks; a block that is removed takes its gates along.
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
        """Return mean squares since the last call, one per remaining block; None if there were none."""
        # Entries of removed blocks are dropped, because they would keep the blocks in memory.
        squares, self._squares = self._squares, {}
        taken = [squares[block].take() if block in squares else None for block in self._blocks]
        found = [value for value in taken if value is not None]
        return torch.cat(found) if len(found) == len(taken) else None

    def remove(self) -> None:
        """Remove the gates."""
        for handle in self._handles:
            handle.remove()
