"""Masks: the reversible way to apply a plan, by multiplying each consumer's input with zeros and ones."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from loraprune.wrapping import base_model

if TYPE_CHECKING:
    from loraprune.plan import Plan
    from loraprune.structure import PrunableDimension, Structure


def input_mask(dimension: PrunableDimension, kept: tuple[int, ...]) -> torch.Tensor:
    """Zeros and ones over the input features of a dimension's consumer."""
    consumer = dimension.consumer
    length = dimension.num_groups * consumer.group_size
    mask = torch.zeros(length)
    mask[consumer.positions(torch.tensor(kept), dimension.num_groups, length)] = 1.0
    return mask


class Masks:
    """Masks on the consumers of a model, following a plan until removed.

    The model keeps its shapes, so that this is safe where slicing is not: under ``DistributedDataParallel`` and for
    comparing plans. The logits equal those of the sliced model.
    """

    def __init__(self, model: nn.Module, structure: Structure, plan: Plan) -> None:
        self._structure = structure
        self._masks: dict[str, torch.Tensor] = {}
        self._handles = []
        self.apply(plan)
        base = base_model(model)
        for dimension in structure:
            module = base.get_submodule(dimension.consumer.module)
            self._handles.append(module.register_forward_pre_hook(self._hook(dimension.name)))

    def apply(self, plan: Plan) -> None:
        """Follow another plan."""
        plan.check(self._structure)
        self._masks = {
            dimension.name: input_mask(dimension, plan.kept[dimension.name]) for dimension in self._structure
        }

    def _hook(self, name: str) -> Any:
        def multiply(module: nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
            inputs = args[0]
            mask = self._masks[name]
            if mask.device != inputs.device or mask.dtype != inputs.dtype:
                mask = self._masks[name] = mask.to(inputs)
            return (inputs * mask, *args[1:])

        return multiply

    def remove(self) -> None:
        """Take the masks off; the model is as it was."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()


@contextmanager
def masked(model: nn.Module, structure: Structure, plan: Plan) -> Iterator[Masks]:
    """Mask a model for the length of a block."""
    masks = Masks(model, structure, plan)
    try:
        yield masks
    finally:
        masks.remove()
