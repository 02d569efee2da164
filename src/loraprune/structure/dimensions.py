"""Prunable dimensions of a model, their members and their sizes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from loraprune.architectures.spec import ArchitectureSpec, Axis

if TYPE_CHECKING:
    import torch
    from torch import nn

WHOLE_MODEL = -1
"""Index used instead of a block's in a dimension that spans all blocks."""

WHOLE_KINDS = ("blocks", "hidden")
"""Kinds of dimensions that span the blocks; a model has one dimension of such a kind, which is pruned alone."""


@dataclass(frozen=True, kw_only=True)
class Member:
    """One side of one layer that shrinks with a dimension, resolved against a model.

    Attributes:
        module: name of the layer in the model (not in the ``PeftModel`` around it).
        axis: ``output`` (rows and bias), ``input`` (columns), ``experts``, ``norm`` or ``blocks``: see
            :data:`loraprune.architectures.spec.Axis`.
        segments: number of positions per group in each segment. Segments follow each other along the axis, and each
            holds every group once, in order. Positions after the last segment belong to no group and stay.
        parameter: name of the parameter; names other than ``weight`` are stacked experts or a router's bias.
        stacked: whether each expert has the axis, with groups numbered consecutively from expert to expert.
    """

    module: str
    axis: Axis
    segments: tuple[int, ...]
    parameter: str = "weight"
    stacked: bool = False

    @property
    def group_size(self) -> int:
        """Number of positions per group along the axis, over all segments."""
        return sum(self.segments)

    def layer(self, model: nn.Module) -> nn.Module:
        """Return the layer in ``model``, or in the ``PeftModel`` around it; an adapted layer is peft's wrapper."""
        from loraprune.layers.unwrap import base_model  # imported here, because a structure can be described without it

        return base_model(model).get_submodule(self.module)

    def weight(self, model: nn.Module) -> torch.Tensor:
        """Return the weight of the layer in ``model`` as a new tensor: ``(out, in)``, in 32 bits, with LoRA's update.

        Raises:
            ValueError: the layer has no such weight, such as stacked experts or an embedding.
        """
        from loraprune.layers.axes import is_matrix
        from loraprune.layers.lora import effective_weight

        layer = self.layer(model)
        if not is_matrix(layer, self.parameter):
            raise ValueError(
                f"{self.module}.{self.parameter} is not the weight of a linear layer. Read it from layer(model), or "
                "leave this kind out (--dimensions)."
            )
        return effective_weight(layer)

    def positions(self, groups: torch.Tensor, num_groups: int, length: int) -> torch.Tensor:
        """Return the positions along the axis that stay when only ``groups`` stay.

        Args:
            groups: indices of the groups that stay, shape ``(kept,)``, ascending.
            num_groups: current number of groups.
            length: current length of the axis.
        """
        import torch  # imported here, because a structure can be described without it

        parts = []
        offset = 0
        for size in self.segments:
            inside = torch.arange(size, device=groups.device)
            parts.append((offset + groups[:, None] * size + inside).flatten())
            offset += num_groups * size
        parts.append(torch.arange(offset, length, device=groups.device))
        return torch.cat(parts)

    def stacked_positions(self, groups: torch.Tensor, num_groups: int, experts: int) -> torch.Tensor:
        """Same for an axis that each expert has; the result has shape ``(experts, positions kept per expert)``.

        Args:
            groups: indices over all experts, equally many for each.
            num_groups: current number of groups over all experts.
            experts: number of experts.
        """
        import torch

        each = num_groups // experts
        local = groups.view(experts, -1) - torch.arange(experts)[:, None] * each
        return torch.stack([self.positions(own, each, each * self.group_size) for own in local])

    def group_sums(self, values: torch.Tensor, num_groups: int) -> torch.Tensor:
        """Sum ``values`` of shape ``(length of the axis,)`` over the positions of each group: ``(num_groups,)``."""
        total = values.new_zeros(num_groups)
        offset = 0
        for size in self.segments:
            total += values[offset : offset + num_groups * size].view(num_groups, size).sum(1)
            offset += num_groups * size
        return total


@dataclass(frozen=True, kw_only=True)
class Remembered:
    """A number that a module derives from a width, and that has to be updated after a cut.

    Attributes:
        module: name of the module.
        name: name of its attribute; ``config.NAME`` is read from the module's config in the forward pass.
        factor: factor by which the number of remaining groups is multiplied.
        divisor: divisor of the product.
    """

    module: str
    name: str
    factor: int
    divisor: int = 1

    def value(self, kept: int) -> int:
        """Return the number for ``kept`` remaining groups."""
        return kept * self.factor // self.divisor


@dataclass(frozen=True, kw_only=True)
class PrunableDimension:
    """A dimension shared by coupled weights that can be shortened: the heads or the channels of one layer.

    Attributes:
        name: name, for example ``layers.3.heads``.
        kind: ``heads`` (KV heads, each with its query heads), ``channels`` (of the FFN), and so on: see
            :class:`loraprune.architectures.DimensionSpec`.
        layer: index of the block; :data:`WHOLE_MODEL` for a dimension that spans all blocks.
        num_groups: number of groups in the model as described.
        members: layers that produce the dimension.
        consumer: layer that reads the dimension.
        parameters_per_group: number of base parameters removed with one group.
        strata: number of equal parts (KV heads, experts) that the groups are divided into; each keeps equally many.
        fine: whether the groups are small and many.
        multiple: multiple that the number of groups per stratum must be.
        tied: name shared by dimensions that have to keep the same groups, or None.
        alibi: whether only every second, fourth, ... group can stay.
        floor: smallest number of groups per stratum.
        numbers: numbers that modules derive from the width.
        config: same for the config: name of the attribute to factor and divisor.
        recorded: same for values that only a config of ours states, per block.
    """

    name: str
    kind: str
    layer: int
    num_groups: int
    members: tuple[Member, ...]
    consumer: Member
    parameters_per_group: int
    strata: int = 1
    fine: bool = False
    multiple: int = 1
    tied: str | None = None
    alibi: bool = False
    floor: int = 1
    numbers: tuple[Remembered, ...] = ()
    config: Mapping[str, tuple[int, int]] | None = None
    recorded: Mapping[str, tuple[int, int]] = field(default_factory=dict)

    @property
    def spans_blocks(self) -> bool:
        """Whether the dimension is one of the whole model: its blocks, or the hidden size."""
        return self.layer == WHOLE_MODEL

    @property
    def all_members(self) -> tuple[Member, ...]:
        """Producers and consumer."""
        return (*self.members, self.consumer)

    @property
    def num_parameters(self) -> int:
        """Number of base parameters of all groups."""
        return self.num_groups * self.parameters_per_group

    @property
    def of_experts(self) -> bool:
        """Whether the groups are experts of a mixture, or are inside them."""
        return self.consumer.stacked or self.consumer.axis == "experts"

    @property
    def per_stratum(self) -> int:
        """Number of groups per stratum."""
        return self.num_groups // self.strata


@dataclass(frozen=True, kw_only=True)
class Structure:
    """All prunable dimensions of a model.

    Attributes:
        spec: declared architecture.
        blocks: names of the blocks, in the order of the forward pass.
        dimensions: dimensions, in the order of the forward pass.
        num_parameters: number of all base parameters of the model, tied ones counted once.
        query_heads_per_group: number of query heads per KV head.
        hidden_size: width of the residual stream.
        protected: indices of blocks that keep all of their groups.
        left_out: kinds of dimensions inside blocks that the model has but that were not requested.
        whole: kinds that span all blocks that the model has but that were not requested.
        any_widths: whether the model already has our class, which accepts any number of heads.
    """

    spec: ArchitectureSpec
    blocks: tuple[str, ...]
    dimensions: tuple[PrunableDimension, ...]
    num_parameters: int
    query_heads_per_group: int
    hidden_size: int
    protected: frozenset[int] = frozenset()
    left_out: tuple[str, ...] = ()
    whole: tuple[str, ...] = ()
    any_widths: bool = False

    def __iter__(self) -> Iterator[PrunableDimension]:
        return iter(self.dimensions)

    def of_layer(self, layer: int) -> tuple[PrunableDimension, ...]:
        """Return the dimensions of one block, in the order of the forward pass."""
        return tuple(dimension for dimension in self.dimensions if dimension.layer == layer)

    def of_kind(self, kind: str) -> tuple[PrunableDimension, ...]:
        """Return the dimensions of one kind over all layers."""
        return tuple(dimension for dimension in self.dimensions if dimension.kind == kind)

    @property
    def kinds(self) -> tuple[str, ...]:
        """Kinds of dimensions, in the order of the forward pass."""
        return tuple(Counter(dimension.kind for dimension in self.dimensions))

    @property
    def spans_blocks(self) -> bool:
        """Whether one dimension of the whole model is pruned."""
        return any(dimension.spans_blocks for dimension in self.dimensions)

    @property
    def open(self) -> tuple[PrunableDimension, ...]:
        """Dimensions that may shrink: those of blocks that are not protected."""
        return tuple(dimension for dimension in self.dimensions if dimension.layer not in self.protected)

    @property
    def prunable_parameters(self) -> int:
        """Number of parameters of all prunable dimensions, to which a sparsity ratio refers."""
        return sum(dimension.num_parameters for dimension in self.dimensions)

    def shrunk(self, counts: Mapping[str, int]) -> Structure:
        """Return the structure of the model after a cut; ``counts`` maps dimensions to their current groups."""
        return replace(
            self,
            dimensions=tuple(
                replace(dimension, num_groups=counts.get(dimension.name, dimension.num_groups))
                for dimension in self.dimensions
            ),
        )
