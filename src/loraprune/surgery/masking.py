"""Masks: the reversible way to apply a plan, on consumers' inputs, on experts and on whole blocks."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from loraprune.importance.evidence.block_gates import entering
from loraprune.layers.experts import ExpertTap
from loraprune.layers.unwrap import base_layer, base_model
from loraprune.structure.hidden import hidden_writers

if TYPE_CHECKING:
    from loraprune.layers.experts import HiddenTap
    from loraprune.structure.dimensions import Member, PrunableDimension, Structure
    from loraprune.structure.plan import Plan


def axis_mask(member: Member, num_groups: int, kept: tuple[int, ...]) -> torch.Tensor:
    """Mask of zeros and ones over one side of a layer."""
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
        self._handles = [self._hook(module)]

    def _hook(self, module: nn.Module) -> RemovableHandle:
        return module.register_forward_pre_hook(self._multiply)

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
    """A mask on the outputs of one layer; ``member`` describes how groups lie along them."""

    def _hook(self, module: nn.Module) -> RemovableHandle:
        return module.register_forward_hook(lambda module, args, output: output * self._for(output))


class _NormMask(_LayerMask):
    """A mask on a norm that averages over all groups, and has to average over the remaining ones instead.

    With zeros in the input, the mean square is that of the rest, times kept / all. Scaling the input up by the root of
    all / kept, and the output down again, equals the norm of the shorter vector, epsilon included. If a cut scales the
    norm's weight instead (the hidden size), the output is not scaled down.
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


def _masks_of(model: nn.Module, dimension: PrunableDimension) -> list[_Mask]:
    """Masks that hide the removed groups of a dimension from its consumer, and from the average of a norm."""
    consumer, groups = dimension.consumer, dimension.num_groups
    masks: list[_Mask]
    if dimension.kind == "blocks":
        blocks: Any = model.get_submodule(consumer.module)
        masks = [BlockMask(blocks)]
    elif dimension.kind == "hidden":  # on everything that writes to the residual stream
        masks = [_OutputMask(model.get_submodule(name), consumer, groups) for name in hidden_writers(dimension)]
    elif consumer.stacked:
        masks = [ExpertChannelMask(model.get_submodule(consumer.module), dimension)]
    elif consumer.axis == "experts":
        masks = [ExpertMask(model, dimension)]
    else:
        masks = [_LayerMask(model.get_submodule(consumer.module), consumer, groups)]
    norms = [member for member in dimension.members if member.axis == "norm"]
    scales_back = dimension.kind != "hidden"
    return [*masks, *(_NormMask(model.get_submodule(norm.module), norm, groups, scales_back) for norm in norms)]


class Masks:
    """Masks on the consumers of a model, which follow a plan until they are removed.

    The model keeps its shapes, so masks are safe where slicing is not: under ``DistributedDataParallel`` and to
    compare plans. The logits equal those of the sliced model.
    """

    def __init__(self, model: nn.Module, structure: Structure, plan: Plan) -> None:
        self._structure = structure
        base = base_model(model)
        self._masks = {dimension.name: _masks_of(base, dimension) for dimension in structure}
        self.apply(plan)

    def apply(self, plan: Plan) -> None:
        """Switch to another plan."""
        plan.check(self._structure)
        for name, masks in self._masks.items():
            for mask in masks:
                mask.follow(plan.kept[name])

    def remove(self) -> None:
        """Remove the masks, which restores the model."""
        for masks in self._masks.values():
            for mask in masks:
                mask.remove()
        self._masks.clear()


@contextmanager
def masked(model: nn.Module, structure: Structure, plan: Plan) -> Iterator[Masks]:
    """Mask a model inside a ``with`` block."""
    masks = Masks(model, structure, plan)
    try:
        yield masks
    finally:
        masks.remove()


# Masks on whole blocks: a masked block returns its input.


class BlockMask:
    """Masks on a list of blocks, which follow a plan.

    Masked blocks still run, and write to a cache if there is one; their results are not used.
    """

    def __init__(self, blocks: nn.ModuleList) -> None:
        self._kept: tuple[int, ...] = tuple(range(len(blocks)))
        self._handles = [
            block.register_forward_hook(self._skipping(number), with_kwargs=True) for number, block in enumerate(blocks)
        ]

    def _skipping(self, number: int) -> Any:
        def skip(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
            if number in self._kept:
                return None
            before = entering(args, kwargs)
            return (before, *output[1:]) if isinstance(output, tuple) else before

        return skip

    def follow(self, kept: tuple[int, ...]) -> None:
        """Switch to another plan."""
        self._kept = kept

    def remove(self) -> None:
        """Remove the masks."""
        for handle in self._handles:
            handle.remove()


# Masks inside a mixture of experts: on the channels of each expert, and on whole experts.


class ExpertChannelMask:
    """A mask on the inputs of the down projection of every expert, which follows a plan.

    Args:
        module: the stacked experts, or peft's wrappers around them.
        dimension: dimension whose groups are the channels of all experts.
    """

    def __init__(self, module: nn.Module, dimension: PrunableDimension) -> None:
        self._dimension = dimension
        self._mask_EI: torch.Tensor | None = None
        self._tap = ExpertTap(module, self._start)

    def follow(self, kept: tuple[int, ...]) -> None:
        """Let only these groups through."""
        mask = torch.zeros(self._dimension.num_groups)
        mask[list(kept)] = 1.0
        self._mask_EI = mask.view(self._dimension.strata, -1)

    def _start(self, tokens: int) -> HiddenTap:
        return self._multiply

    def _multiply(self, hidden: torch.Tensor, expert: int, tokens: torch.Tensor) -> torch.Tensor:
        assert self._mask_EI is not None
        if self._mask_EI.device != hidden.device or self._mask_EI.dtype != hidden.dtype:
            self._mask_EI = self._mask_EI.to(hidden)
        return hidden * self._mask_EI[expert]

    def remove(self) -> None:
        """Remove the mask."""
        self._tap.remove()


class ExpertMask:
    """A router that acts as if some experts were removed, which follows a plan.

    The choice of the best experts and the normalization of their weights depend on the available experts, so a mask on
    a layer's input is not enough. The router is run again with the rows of the remaining experts, and its answer is
    renumbered to the original experts.

    Args:
        model: the transformers model.
        dimension: dimension whose groups are experts.
    """

    def __init__(self, model: nn.Module, dimension: PrunableDimension) -> None:
        rows = [member for member in dimension.members if member.axis == "output"]
        (name,) = {member.module for member in rows}
        self._router: Any = base_layer(model.get_submodule(name))
        self._parameters = [member.parameter for member in rows]
        self._numbers = [number for number in dimension.numbers if number.module == name]
        self._kept: torch.Tensor | None = None
        # A second router with the class and settings of the first, and cut tensors instead of its own.
        self._cut: Any = copy.copy(self._router)
        for kind in ("_parameters", "_buffers"):
            own = getattr(self._router, kind)
            self._cut.__dict__[kind] = {key: own[key] for key in own if key not in self._parameters}
        self._handle = self._router.register_forward_hook(self._route)

    def follow(self, kept: tuple[int, ...]) -> None:
        """Route only to these experts."""
        self._kept = torch.tensor(kept)
        for number in self._numbers:
            setattr(self._cut, number.name, number.value(len(kept)))

    def _route(self, router: Any, args: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        assert self._kept is not None
        kept = self._kept = self._kept.to(output[0].device)
        for name in self._parameters:
            self._cut.__dict__[name] = getattr(router, name)[kept]
        logits, weights, index = type(self._cut).forward(self._cut, *args)
        # As many logits as before, for code that reads them (an auxiliary loss); removed experts get no chance.
        all_logits = torch.full_like(output[0], torch.finfo(output[0].dtype).min)
        return all_logits.index_copy(-1, kept, logits.to(all_logits.dtype)), weights, kept[index]

    def remove(self) -> None:
        """Restore all experts of the router."""
        self._handle.remove()
        for name in self._parameters:
            self._cut.__dict__.pop(name, None)
