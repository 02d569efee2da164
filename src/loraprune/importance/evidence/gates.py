"""Gradients of group gates, read in the backward pass without storing extra activations."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import nn

from loraprune.importance.evidence.block_gates import BlockGates, StreamGates
from loraprune.importance.evidence.expert_gates import ExpertChannelGates, SequenceCounts, WholeExpertGates
from loraprune.importance.evidence.gate_squares import GateSquares
from loraprune.importance.evidence.gradient_tap import listen
from loraprune.layers.unwrap import base_model
from loraprune.structure.hidden import hidden_writers

if TYPE_CHECKING:
    from loraprune.structure.dimensions import Member, PrunableDimension, Structure


class _Gates(Protocol):
    """Gates on the groups of one dimension."""

    def take(self) -> torch.Tensor | None: ...

    def remove(self) -> None: ...


def _autocasts(device: str) -> bool:
    """Whether autocast is on for a device type; the meta device has none."""
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)


class ConsumerGates:
    """Gates on the inputs of a dimension's consumer.

    Args:
        module: the consumer, or peft's wrapper around it.
        segments: number of features per group in each segment.
        anchor: see :func:`loraprune.importance.evidence.gradient_tap.listen`.
        sequences: returns the number of sequences in the current forward pass.
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
        # Under autocast, peft would cast the input up to the adapter's 32 bits, and autocast would cast it down again
        # immediately, into a copy that LoRA's A keeps. Without that detour, A keeps the same tensor as the gate.
        if hasattr(module, "lora_A"):
            module.cast_input_dtype_enabled = self._casts and not _autocasts(inputs.device.type)
        if not torch.is_grad_enabled():
            return None
        heard = self._squares.add
        if inputs.dim() == 2:  # the tokens of all sequences in one row, as around the experts of a mixture
            batch = (self._sequences(), -1)

            def heard(inputs: torch.Tensor, gradients: torch.Tensor) -> None:
                self._squares.add(inputs.unflatten(0, batch), gradients.unflatten(0, batch))

        return (listen(inputs, self._anchor, heard), *args[1:])

    def take(self) -> torch.Tensor | None:
        """Return mean squares since the last call, shape ``(groups,)``; None if there were none."""
        return self._squares.take()

    def remove(self) -> None:
        """Remove the gates."""
        self._handle.remove()
        if hasattr(self._module, "lora_A"):
            self._module.cast_input_dtype_enabled = self._casts


def _gates_on(
    dimension: PrunableDimension, model: nn.Module, anchor: torch.Tensor, sequences: Callable[[], int]
) -> _Gates:
    consumer: Member = dimension.consumer
    module: Any = model.get_submodule(consumer.module)
    if dimension.kind == "blocks":
        return BlockGates(module, anchor)
    if dimension.kind == "hidden":
        embedding, *writers = (model.get_submodule(name) for name in hidden_writers(dimension))
        return StreamGates(embedding, writers, anchor)
    if consumer.stacked:
        return ExpertChannelGates(module, anchor, sequences)
    if consumer.axis == "experts":
        return WholeExpertGates(module, anchor, sequences)
    return ConsumerGates(module, consumer.segments, anchor, sequences)


class GateProbes:
    """Gates on every consumer of a model; they change nothing and listen to each backward pass.

    Gradient accumulation and checkpointing do not change the result: evidence is collected only in the backward pass,
    one sequence at a time, so the grouping of sequences into micro-batches does not matter.
    """

    def __init__(self, model: nn.Module, structure: Structure) -> None:
        base = base_model(model)
        anchor = torch.zeros((), requires_grad=True)
        blocks = dict.fromkeys(structure.blocks[d.layer] for d in structure if not d.spans_blocks)
        self._sequences = SequenceCounts(base, blocks)
        self._gates: dict[str, _Gates] = {
            dimension.name: _gates_on(
                dimension,
                base,
                anchor,
                partial(self._sequences.of, structure.blocks[dimension.layer]),
            )
            for dimension in structure
        }

    def take(self) -> dict[str, torch.Tensor]:
        """Return mean squares since the last call, for the dimensions that saw a backward pass."""
        taken = {name: gates.take() for name, gates in self._gates.items()}
        return {name: values for name, values in taken.items() if values is not None}

    def remove(self) -> None:
        """Remove the gates."""
        for gates in self._gates.values():
            gates.remove()
        self._sequences.remove()
