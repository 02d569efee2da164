"""Masks inside a mixture of experts: on the channels of each expert, and on whole experts."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch

from loraprune.layers.experts import ExpertTap
from loraprune.layers.unwrap import base_layer

if TYPE_CHECKING:
    from torch import nn

    from loraprune.layers.experts import HiddenTap
    from loraprune.structure.dimensions import PrunableDimension


class ExpertChannelMask:
    """A mask on what enters the down projection of every expert, which follows a plan.

    Args:
        module: the stacked experts, or peft's wrappers around them.
        dimension: whose groups are the channels of all experts.
    """

    def __init__(self, module: nn.Module, dimension: PrunableDimension) -> None:
        self._dimension = dimension
        self._mask_EI: torch.Tensor | None = None
        self._tap = ExpertTap(module, self._start)

    def follow(self, kept: tuple[int, ...]) -> None:
        """Let through only these groups."""
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
        """Take the mask off."""
        self._tap.remove()


class ExpertMask:
    """A router that acts as if some experts were gone, which follows a plan.

    The choice of the best experts, and what their weights are divided by, depend on which experts there are, so no
    mask on a layer's input will do. The router is asked again with the rows of the experts that stay, and its answer
    is numbered as if all were there.

    Args:
        model: the transformers model.
        dimension: whose groups are experts.
    """

    def __init__(self, model: nn.Module, dimension: PrunableDimension) -> None:
        rows = [member for member in dimension.members if member.axis == "output"]
        (name,) = {member.module for member in rows}
        self._router: Any = base_layer(model.get_submodule(name))
        self._parameters = [member.parameter for member in rows]
        self._numbers = [number for number in dimension.numbers if number.module == name]
        self._kept: torch.Tensor | None = None
        # A second router with the class and the settings of the first, and cut tensors in place of its own.
        self._cut: Any = copy.copy(self._router)
        for kind in ("_parameters", "_buffers"):
            own = getattr(self._router, kind)
            self._cut.__dict__[kind] = {key: own[key] for key in own if key not in self._parameters}
        self._handle = self._router.register_forward_hook(self._route)

    def follow(self, kept: tuple[int, ...]) -> None:
        """Route to these experts only."""
        self._kept = torch.tensor(kept)
        for number in self._numbers:
            setattr(self._cut, number.name, number.value(len(kept)))

    def _route(self, router: Any, args: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        assert self._kept is not None
        kept = self._kept = self._kept.to(output[0].device)
        for name in self._parameters:
            self._cut.__dict__[name] = getattr(router, name)[kept]
        logits, weights, index = type(self._cut).forward(self._cut, *args)
        # As many logits as before, for whoever reads them (an auxiliary loss): no chance for those that are gone.
        all_logits = torch.full_like(output[0], torch.finfo(output[0].dtype).min)
        return all_logits.index_copy(-1, kept, logits.to(all_logits.dtype)), weights, kept[index]

    def remove(self) -> None:
        """Give the router back all of its experts."""
        self._handle.remove()
        for name in self._parameters:
            self._cut.__dict__.pop(name, None)
