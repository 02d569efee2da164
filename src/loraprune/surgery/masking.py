"""Masks: the reversible way to apply a plan, by multiplying each consumer's input with zeros and ones."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import nn

from loraprune.layers.unwrap import base_model
from loraprune.structure.hidden import stream_writers
from loraprune.surgery.block_masks import BlockMask
from loraprune.surgery.expert_masks import ExpertChannelMask, ExpertMask

if TYPE_CHECKING:
    from loraprune.structure.dimensions import Member, PrunableDimension, Structure
    from loraprune.structure.plan import Plan


def axis_mask(member: Member, num_groups: int, kept: tuple[int, ...]) -> torch.Tensor:
    """Zeros and ones over one side of a layer."""
    length = num_groups * member.group_size
    mask = torch.zeros(length)
    mask[member.positions(torch.tensor(kept), num_groups, length)] = 1.0
    return mask


class _Mask(Protocol):
    """A mask that follows a plan."""

    def follow(self, kept: tuple[int, ...]) -> None: ...

    def remove(self) -> None: ...


class _LayerMask:
    """A mask on the inputs of one layer, which follows a plan."""

    def __init__(self, module: nn.Module, member: Member, num_groups: int) -> None:
        self._member, self._num_groups = member, num_groups
        self._mask: torch.Tensor | None = None
        self._handles = [module.register_forward_pre_hook(self._multiply)]

    def follow(self, kept: tuple[int, ...]) -> None:
        self._mask = axis_mask(self._member, self._num_groups, kept)

    def _for(self, tensor: torch.Tensor) -> torch.Tensor:
        assert self._mask is not None
        if self._mask.device != tensor.device or self._mask.dtype != tensor.dtype:
            self._mask = self._mask.to(tensor)
        return self._mask

    def _multiply(self, module: nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        return (args[0] * self._for(args[0]), *args[1:])

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()


class _OutputMask(_LayerMask):
    """A mask on what one layer gives; ``member`` says how groups lie along it."""

    def __init__(self, module: nn.Module, member: Member, num_groups: int) -> None:
        self._member, self._num_groups = member, num_groups
        self._mask: torch.Tensor | None = None
        self._handles = [module.register_forward_hook(self._multiply_output)]

    def _multiply_output(self, module: nn.Module, args: Any, output: torch.Tensor) -> torch.Tensor:
        return output * self._for(output)


class _NormMask(_LayerMask):
    """A mask on a norm whose average runs over all groups: it has to become the average over those that stay.

    With zeros in the input the mean square is that of the rest, times kept / all. Scaling the input up by the root of
    all / kept, and the output down again, gives what the norm of the shorter vector gives, epsilon included. Where a
    cut scales the norm's weight instead (the hidden size), the output stays up.
    """

    def __init__(self, module: nn.Module, member: Member, num_groups: int, scales_back: bool = True) -> None:
        super().__init__(module, member, num_groups)
        self._factor = 1.0
        if scales_back:
            self._handles.append(module.register_forward_hook(self._scale_back))

    def follow(self, kept: tuple[int, ...]) -> None:
        super().follow(kept)
        self._factor = (self._num_groups / len(kept)) ** 0.5

    def _multiply(self, module: nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        return (args[0] * (self._for(args[0]) * self._factor), *args[1:])

    def _scale_back(self, module: nn.Module, args: Any, output: torch.Tensor) -> torch.Tensor:
        return output / self._factor


class _StreamMask:
    """A mask on everything that is written to the residual stream, which follows a plan."""

    def __init__(self, model: nn.Module, dimension: PrunableDimension) -> None:
        self._writers = [
            _OutputMask(model.get_submodule(name), dimension.consumer, dimension.num_groups)
            for name in stream_writers(dimension)
        ]

    def follow(self, kept: tuple[int, ...]) -> None:
        for writer in self._writers:
            writer.follow(kept)

    def remove(self) -> None:
        for writer in self._writers:
            writer.remove()


def _consumer_mask(model: nn.Module, dimension: PrunableDimension) -> _Mask:
    """The mask that keeps the groups of a dimension from its consumer."""
    consumer = dimension.consumer
    if dimension.kind == "blocks":
        blocks: Any = model.get_submodule(consumer.module)
        return BlockMask(blocks)
    if dimension.kind == "hidden":
        return _StreamMask(model, dimension)
    if consumer.stacked:
        return ExpertChannelMask(model.get_submodule(consumer.module), dimension)
    if consumer.axis == "experts":
        return ExpertMask(model, dimension)
    return _LayerMask(model.get_submodule(consumer.module), consumer, dimension.num_groups)


class Masks:
    """Masks on the consumers of a model, following a plan until removed.

    The model keeps its shapes, so that this is safe where slicing is not: under ``DistributedDataParallel`` and for
    comparing plans. The logits equal those of the sliced model.
    """

    def __init__(self, model: nn.Module, structure: Structure, plan: Plan) -> None:
        self._structure = structure
        base = base_model(model)
        self._masks: dict[str, list[_Mask]] = {}
        for dimension in structure:
            masks = [_consumer_mask(base, dimension)]
            masks += [
                _NormMask(base.get_submodule(member.module), member, dimension.num_groups, dimension.kind != "hidden")
                for member in dimension.members
                if member.axis == "norm"
            ]
            self._masks[dimension.name] = masks
        self.apply(plan)

    def apply(self, plan: Plan) -> None:
        """Follow another plan."""
        plan.check(self._structure)
        for name, masks in self._masks.items():
            for mask in masks:
                mask.follow(plan.kept[name])

    def remove(self) -> None:
        """Take the masks off; the model is as it was."""
        for masks in self._masks.values():
            for mask in masks:
                mask.remove()
        self._masks.clear()


@contextmanager
def masked(model: nn.Module, structure: Structure, plan: Plan) -> Iterator[Masks]:
    """Mask a model for the length of a block."""
    masks = Masks(model, structure, plan)
    try:
        yield masks
    finally:
        masks.remove()
