"""Gradients of group gates, read off the backward pass at no stored activation of their own."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import nn

from loraprune.evidence.expert_gates import ExpertChannelGates, WholeExpertGates
from loraprune.evidence.listening import listen
from loraprune.evidence.sequences import SequenceCounts
from loraprune.wrapping import base_model

if TYPE_CHECKING:
    from loraprune.dimensions import Member, Structure


def gate_gradients(inputs: torch.Tensor, gradients: torch.Tensor, segments: tuple[int, ...]) -> torch.Tensor:
    """Gradient of the loss with respect to a gate of value 1 on every group, one sequence at a time.

    For a gate ``c_g`` that multiplies the features of group g: ``∂L/∂c_g = Σ_tokens Σ_features (∂L/∂x · x)``.

    Args:
        inputs: features ``x``, shape ``(batch, ..., features)``; what lies between (tokens, rows and columns of an
            image) is summed over.
        gradients: ``∂L/∂x``, same shape.
        segments: features a group takes, per segment (see :class:`loraprune.structure.Member`).

    Returns:
        Shape ``(batch, groups)``, float32.

    Source: Michel et al. 2019 (arXiv 1905.10650, Eq. 3), for every sequence and without the absolute value.
    """
    # One sequence at a time: on a CPU the product is read back before it leaves the cache, elsewhere it stays small.
    inputs, gradients = inputs.flatten(1, -2), gradients.flatten(1, -2)
    features = torch.stack([(x * g.float()).sum(0) for x, g in zip(inputs, gradients, strict=True)]).float()
    batch, length = features.shape
    groups = length // sum(segments)
    total = features.new_zeros(batch, groups)
    offset = 0
    for size in segments:
        total += features[:, offset : offset + groups * size].view(batch, groups, size).sum(2)
        offset += groups * size
    return total


class GateSquares:
    """Running sum of squared gate gradients of one dimension, and the number of sequences in it."""

    def __init__(self, segments: tuple[int, ...]) -> None:
        self.segments = segments
        self.total: torch.Tensor | None = None
        self.sequences = 0

    def add(self, inputs: torch.Tensor, gradients: torch.Tensor) -> None:
        """Take in one micro-batch."""
        squares = gate_gradients(inputs, gradients, self.segments).square_().sum(0)
        self.total = squares if self.total is None else self.total.add_(squares)
        self.sequences += inputs.shape[0]

    def take(self) -> torch.Tensor | None:
        """Mean square over the sequences since the last call, shape ``(groups,)``; None when there were none."""
        total, sequences = self.total, self.sequences
        self.total, self.sequences = None, 0
        return None if total is None else total / sequences


class _Gates(Protocol):
    """Gates on the groups of one dimension."""

    def take(self) -> torch.Tensor | None: ...

    def remove(self) -> None: ...


class ConsumerGates:
    """Gates on what enters the consumer of a dimension.

    Args:
        module: the consumer, or peft's wrapper around it.
        segments: features a group takes, per segment.
        anchor: see :func:`loraprune.evidence.listening.listen`.
        sequences: says how many sequences the running forward pass holds.
    """

    def __init__(
        self, module: nn.Module, segments: tuple[int, ...], anchor: torch.Tensor, sequences: Callable[[], int]
    ) -> None:
        self._module: Any = module
        self._squares = GateSquares(segments)
        self._anchor = anchor
        self._sequences = sequences
        self._casts = bool(getattr(module, "cast_input_dtype_enabled", True))
        self._handle = module.register_forward_pre_hook(self._gate)

    def _gate(self, module: Any, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...] | None:
        inputs = args[0]
        # Under autocast peft would cast the input up to the adapter's 32 bits, and autocast at once down again,
        # into a copy that LoRA's A then keeps. Without that detour A keeps the same tensor as the gate.
        if hasattr(module, "lora_A"):
            module.cast_input_dtype_enabled = self._casts and not torch.is_autocast_enabled(inputs.device.type)
        if not torch.is_grad_enabled():
            return None
        heard = self._squares.add
        if inputs.dim() == 2:  # the tokens of all sequences in one row, as around the experts of a mixture
            batch = (self._sequences(), -1)

            def heard(inputs: torch.Tensor, gradients: torch.Tensor) -> None:
                self._squares.add(inputs.unflatten(0, batch), gradients.unflatten(0, batch))

        return (listen(inputs, self._anchor, heard), *args[1:])

    def take(self) -> torch.Tensor | None:
        """Mean squares since the last call, shape ``(groups,)``; None when there were none."""
        return self._squares.take()

    def remove(self) -> None:
        """Take the gates off."""
        self._handle.remove()
        if hasattr(self._module, "lora_A"):
            self._module.cast_input_dtype_enabled = self._casts


def _gates_on(consumer: Member, module: nn.Module, anchor: torch.Tensor, sequences: Callable[[], int]) -> _Gates:
    if consumer.stacked:
        return ExpertChannelGates(module, anchor, sequences)
    if consumer.axis == "experts":
        return WholeExpertGates(module, anchor, sequences)
    return ConsumerGates(module, consumer.segments, anchor, sequences)


class GateProbes:
    """Gates on every consumer of a model; they change nothing and listen to each backward pass.

    Right under gradient accumulation and checkpointing, because evidence is gathered in the backward pass alone,
    one sequence at a time: how sequences are grouped into micro-batches does not matter.
    """

    def __init__(self, model: nn.Module, structure: Structure) -> None:
        base = base_model(model)
        anchor = torch.zeros((), requires_grad=True)
        self._sequences = SequenceCounts(base, structure.blocks)
        self._gates: dict[str, _Gates] = {
            dimension.name: _gates_on(
                dimension.consumer,
                base.get_submodule(dimension.consumer.module),
                anchor,
                partial(self._sequences.of, structure.blocks[dimension.layer]),
            )
            for dimension in structure
        }

    def take(self) -> dict[str, torch.Tensor]:
        """Mean squares since the last call, for the dimensions that saw a backward pass."""
        taken = {name: gates.take() for name, gates in self._gates.items()}
        return {name: values for name, values in taken.items() if values is not None}

    def remove(self) -> None:
        """Take the gates off."""
        for gates in self._gates.values():
            gates.remove()
        self._sequences.remove()
