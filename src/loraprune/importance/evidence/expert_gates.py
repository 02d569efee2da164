"""Gradients of gates inside a mixture of experts: on the channels of each expert, and on whole experts."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from loraprune.importance.evidence.gradient_tap import listen
from loraprune.layers.experts import ExpertTap
from loraprune.layers.unwrap import base_layer
from loraprune.processes.ranks import mean_square

if TYPE_CHECKING:
    from torch import nn

    from loraprune.layers.experts import HiddenTap


def sums_by_sequence(values: torch.Tensor, sequence: torch.Tensor, batch: int) -> torch.Tensor:
    """Sum over the tokens of each sequence.

    Args:
        values: shape ``(tokens, features)``.
        sequence: the sequence of each token, shape ``(tokens,)``.
        batch: number of sequences.

    Returns:
        Shape ``(batch, features)``.
    """
    return values.new_zeros(batch, values.shape[1]).index_add_(0, sequence, values)


def channel_gate_gradients(
    hidden: torch.Tensor, gradients: torch.Tensor, sequence: torch.Tensor, batch: int
) -> torch.Tensor:
    """Gradient of the loss with respect to a gate of value 1 on each channel of one expert, one sequence at a time.

    For a gate ``c`` that multiplies a channel ``h``: ``∂L/∂c = Σ ∂L/∂h · h`` over the sequence's tokens that are
    routed to this expert. Same source as :func:`loraprune.importance.evidence.gate_squares.gate_gradients`.

    Args:
        hidden: inputs of the down projection, shape ``(tokens, channels)``.
        gradients: gradients of the loss with respect to them, same shape.
        sequence: the sequence of each token.
        batch: number of sequences.

    Returns:
        Shape ``(batch, channels)``, float32.
    """
    return sums_by_sequence(hidden * gradients.float(), sequence, batch)


def expert_gate_gradients(
    weights: torch.Tensor, gradients: torch.Tensor, top_k_index: torch.Tensor, num_experts: int, batch: int
) -> torch.Tensor:
    """Same for a gate on the whole output of an expert: ``∂L/∂c = Σ ∂L/∂w · w`` over its routing weights.

    Args:
        weights: routing weights, shape ``(tokens, k)``.
        gradients: gradients of the loss with respect to them, same shape.
        top_k_index: experts that they belong to, same shape.
        num_experts: number of experts.
        batch: number of sequences, which all have the same number of tokens.

    Returns:
        Shape ``(batch, experts)``, float32.
    """
    products = (weights * gradients.float()).view(batch, -1)
    return products.new_zeros(batch, num_experts).scatter_add_(1, top_k_index.view(batch, -1), products)


class ExpertSquares:
    """Running sum of squared gate gradients over all experts of a block, and the number of sequences in it."""

    def __init__(self) -> None:
        self._total: torch.Tensor | None = None
        self._sequences = 0

    def add(self, squares: torch.Tensor, num_experts: int, expert: int | slice) -> None:
        """Add squares, summed over sequences, of one expert ``(groups of an expert,)`` or of several."""
        if self._total is None:
            self._total = squares.new_zeros(num_experts, squares.shape[-1])
        self._total[expert] += squares

    def count(self, sequences: int) -> None:
        """Add to the number of sequences that were summed over."""
        self._sequences += sequences

    def take(self) -> torch.Tensor | None:
        """Return the mean square over the sequences since the last call, shape ``(groups,)``; None without any."""
        total, sequences = self._total, self._sequences
        self._total, self._sequences = None, 0
        return None if total is None else mean_square(total.flatten(), sequences)


class _Pass:
    """One forward pass through the experts; its sequences are counted when its backward pass arrives."""

    def __init__(self, squares: ExpertSquares, batch: int, tokens: int, num_experts: int) -> None:
        self._squares = squares
        self._batch = batch
        self._tokens_per_sequence = tokens // batch
        self._num_experts = num_experts
        self._counted = False

    def _count(self) -> None:
        if not self._counted:
            self._squares.count(self._batch)
            self._counted = True

    def heard(self, expert: int, tokens: torch.Tensor, hidden: torch.Tensor, gradients: torch.Tensor) -> None:
        sequence = tokens // self._tokens_per_sequence
        of_gates = channel_gate_gradients(hidden, gradients, sequence, self._batch)
        self._count()
        self._squares.add(of_gates.square_().sum(0), self._num_experts, expert)


class ExpertChannelGates:
    """Gates on the channels of every expert of one block.

    Args:
        module: the stacked experts, or peft's wrappers around them.
        anchor: see :func:`loraprune.importance.evidence.gradient_tap.listen`.
        sequences: returns the number of sequences in the current forward pass.
    """

    def __init__(self, module: nn.Module, anchor: torch.Tensor, sequences: Callable[[], int]) -> None:
        self._layer: Any = base_layer(module)
        self._anchor = anchor
        self._sequences = sequences
        self._squares = ExpertSquares()
        self._tap = ExpertTap(module, self._start)

    def _start(self, tokens: int) -> HiddenTap:
        if not torch.is_grad_enabled():
            return lambda hidden, expert, of_expert: hidden
        current = _Pass(self._squares, self._sequences(), tokens, int(self._layer.down_proj.shape[0]))

        def gate(hidden: torch.Tensor, expert: int, of_expert: torch.Tensor) -> torch.Tensor:
            return listen(hidden, self._anchor, partial(current.heard, expert, of_expert))

        return gate

    def take(self) -> torch.Tensor | None:
        """Return mean squares since the last call, ordered by expert and then by channel; None if there were none."""
        return self._squares.take()

    def remove(self) -> None:
        """Remove the gates."""
        self._tap.remove()


class WholeExpertGates:
    """Gates on the contribution of every expert of one block; for the arguments see :class:`ExpertChannelGates`."""

    def __init__(self, module: nn.Module, anchor: torch.Tensor, sequences: Callable[[], int]) -> None:
        self._layer: Any = base_layer(module)
        self._anchor = anchor
        self._sequences = sequences
        self._squares = ExpertSquares()
        self._handle = self._layer.register_forward_pre_hook(self._gate)

    def _gate(self, module: nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...] | None:
        if not torch.is_grad_enabled():
            return None
        hidden, top_k_index, weights = args
        heard = partial(self._heard, top_k_index, int(self._layer.down_proj.shape[0]), self._sequences())
        return hidden, top_k_index, listen(weights, self._anchor, heard)

    def _heard(
        self, index: torch.Tensor, num_experts: int, batch: int, weights: torch.Tensor, gradients: torch.Tensor
    ) -> None:
        of_gates = expert_gate_gradients(weights, gradients, index, num_experts, batch)
        self._squares.add(of_gates.square_().sum(0)[:, None], num_experts, slice(None))
        self._squares.count(batch)

    def take(self) -> torch.Tensor | None:
        """Return mean squares since the last call, shape ``(experts,)``; None if there were none."""
        return self._squares.take()

    def remove(self) -> None:
        """Remove the gates."""
        self._handle.remove()


# Number of sequences that a block runs on: layers inside it may see the tokens of all sequences in one row.


def _first_tensor(values: Iterable[Any]) -> torch.Tensor:
    return next(value for value in values if isinstance(value, torch.Tensor))


class SequenceCounts:
    """Number of sequences in the last call of each block, read from its hidden states.

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
            # Hidden states are the first argument, or are named; otherwise they are the first tensor.
            self._counts[name] = _first_tensor((*args, kwargs.get("hidden_states"), *kwargs.values())).shape[0]

        return count

    def of(self, block: str) -> int:
        """Return the number of sequences in the current forward pass of a block."""
        return self._counts[block]

    def remove(self) -> None:
        """Stop counting."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
