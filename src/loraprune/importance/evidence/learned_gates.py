"""Gates that multiply the inputs of the consumers, and whose gradients are kept over an optimizer step."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from loraprune.layers.axes import axis_length
from loraprune.layers.unwrap import base_model

if TYPE_CHECKING:
    from torch import nn

    from loraprune.structure.dimensions import Member, Structure


def check_gateable(structure: Structure) -> None:
    """Check that every dimension can have learned gates.

    Raises:
        ValueError: the groups of a dimension are not the inputs of one layer.
    """
    for dimension in structure:
        # The hidden size is read by many layers, of which the consumer is only one.
        if dimension.of_experts or dimension.spans_blocks or dimension.consumer.axis != "input":
            raise ValueError(
                f"'compresso' learns gates on heads and channels that one layer reads, and {dimension.name} "
                f"({dimension.kind}) is not of that type. Leave {dimension.kind} out of --dimensions, or use 'fisher'."
            )


def over_features(values_G: torch.Tensor, member: Member, length: int) -> torch.Tensor:
    """Expand one value per group to one per feature, differentiably; features of no group get 1.

    Args:
        values_G: shape ``(groups,)``.
        member: the consumer.
        length: number of input features.
    """
    parts = [values_G[:, None].expand(-1, size).flatten() for size in member.segments]
    rest = length - len(values_G) * member.group_size
    return torch.cat([*parts, values_G.new_ones(rest)] if rest else parts)


class _ConsumerGate:
    """Gates on the groups that one consumer reads: a sample in training mode, a fixed value otherwise."""

    def __init__(self, module: nn.Module, member: Member) -> None:
        self._member = member
        self.num_groups = axis_length(module, "input", member.parameter) // member.group_size
        self._sampled: torch.Tensor | None = None
        self._fixed: torch.Tensor | None = None
        self._handle = module.register_forward_pre_hook(self._multiply)

    def set(self, sampled_G: torch.Tensor, fixed_G: torch.Tensor) -> None:
        # Leaf tensors: gradients of all micro-batches of a step add up in `grad`, and no graph outlives a backward.
        self._sampled = sampled_G.detach().clone().requires_grad_()
        self._fixed = fixed_G.detach()

    def _multiply(self, module: nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...] | None:
        if self._sampled is None or self._fixed is None:
            return None
        inputs = args[0]
        if self._sampled.device != inputs.device:
            self.set(self._sampled.to(inputs.device), self._fixed.to(inputs.device))
        # The module's mode decides, since checkpointing may run the first forward pass without gradients.
        gates = self._sampled if module.training else self._fixed
        assert gates is not None
        return (inputs * over_features(gates, self._member, inputs.shape[-1]).to(inputs.dtype), *args[1:])

    def take(self) -> torch.Tensor | None:
        assert self._sampled is not None
        gradient, self._sampled.grad = self._sampled.grad, None
        return None if gradient is None else gradient.float().cpu()

    def remove(self) -> None:
        self._handle.remove()


class LearnedGates:
    """Gates on the consumers of a structure; they change nothing until they are set.

    One sample serves all forward passes until the next is set: those of all micro-batches of an optimizer step, and
    those that gradient checkpointing repeats.
    """

    def __init__(self, model: nn.Module, structure: Structure) -> None:
        check_gateable(structure)
        base = base_model(model)
        self._gates = {
            dimension.name: _ConsumerGate(base.get_submodule(dimension.consumer.module), dimension.consumer)
            for dimension in structure.open
        }

    def num_groups(self) -> dict[str, int]:
        """Return the number of groups that each consumer reads now."""
        return {name: gate.num_groups for name, gate in self._gates.items()}

    def set(self, sampled: dict[str, torch.Tensor], fixed: dict[str, torch.Tensor]) -> None:
        """Set the gates of training mode and those of evaluation mode, one value per group."""
        for name, gate in self._gates.items():
            gate.set(sampled[name], fixed[name])

    def take(self) -> dict[str, torch.Tensor] | None:
        """Return gradients with respect to the sample, summed over the backward passes since it was set.

        Returns:
            Gradients on the CPU in 32 bits; None if a gate saw no backward pass or a gradient is not finite.
        """
        taken: dict[str, Any] = {name: gate.take() for name, gate in self._gates.items()}
        usable = all(value is not None and bool(torch.isfinite(value).all()) for value in taken.values())
        return taken if usable else None

    def remove(self) -> None:
        """Remove the gates."""
        for gate in self._gates.values():
            gate.remove()
