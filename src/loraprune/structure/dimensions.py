"""What can be pruned in a model: its prunable dimensions, their members and their sizes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from loraprune.architectures.spec import ArchitectureSpec, Axis

if TYPE_CHECKING:
    import torch

WHOLE_MODEL = -1
"""What stands for the index of a block in a dimension that spans all of them."""

WHOLE_KINDS = ("blocks", "hidden")
"""Kinds of dimensions that span the blocks: there is one such dimension in a model, and it is pruned alone."""


@dataclass(frozen=True, kw_only=True)
class Member:
    """One side of one layer that shrinks with a dimension, resolved against a model.

    Attributes:
        module: name of the layer in the model (not in the ``PeftModel`` around it).
        axis: ``output`` (rows and bias), ``input`` (columns), ``experts``, ``norm`` or ``blocks``: see
            :data:`loraprune.architectures.spec.Axis`.
        segments: positions a group takes in each segment; segments stand one after the other along the axis, and
            each holds every group once, in order. What lies behind the last segment belongs to no group and stays.
        parameter: name of the parameter; anything but ``weight`` are stacked experts or a router's bias.
        stacked: the axis is there once for each expert, and the groups are numbered through from expert to expert.
    """

    module: str
    axis: Axis
    segments: tuple[int, ...]
    parameter: str = "weight"
    stacked: bool = False

    @property
    def group_size(self) -> int:
        """Positions that one group takes along the axis, over all segments."""
        return sum(self.segments)

    def positions(self, groups: torch.Tensor, num_groups: int, length: int) -> torch.Tensor:
        """Positions along the axis that stay when only ``groups`` stay.

        Args:
            groups: indices of the groups that stay, shape ``(kept,)``, ascending.
            num_groups: groups that there are now.
            length: length of the axis now.
        """
        import torch  # here, so that a description of what is pruned can be made without waiting for it

        parts = []
        offset = 0
        for size in self.segments:
            inside = torch.arange(size, device=groups.device)
            parts.append((offset + groups[:, None] * size + inside).flatten())
            offset += num_groups * size
        parts.append(torch.arange(offset, length, device=groups.device))
        return torch.cat(parts)

    def stacked_positions(self, groups: torch.Tensor, num_groups: int, experts: int) -> torch.Tensor:
        """The same for an axis that each expert has: shape ``(experts, positions kept of one expert)``.

        Args:
            groups: indices over all experts, equally many of each.
            num_groups: groups that there are now, over all experts.
            experts: how many there are.
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
    """A number that a module keeps of a width, and that has to follow a cut.

    Attributes:
        module: name of the module.
        name: of its attribute; ``config.NAME`` is read from the module's config in the forward pass.
        factor: what the number of groups that stay is multiplied with.
        divisor: and divided by.
    """

    module: str
    name: str
    factor: int
    divisor: int = 1

    def value(self, kept: int) -> int:
        """The number when ``kept`` groups stay."""
        return kept * self.factor // self.divisor


@dataclass(frozen=True, kw_only=True)
class PrunableDimension:
    """A dimension shared by coupled weights that can be shortened: the heads, or the channels, of one layer.

    Attributes:
        name: for example ``layers.3.heads``.
        kind: ``heads`` (KV heads, each with its query heads), ``channels`` (of the FFN), and so on: see
            :class:`loraprune.architectures.DimensionSpec`.
        layer: index of the block; :data:`WHOLE_MODEL` of a dimension that spans all blocks.
        num_groups: groups in the model as described.
        members: the layers that produce the dimension.
        consumer: the layer that reads it.
        parameters_per_group: base parameters that go with one group.
        strata: parts of equal size (KV heads, experts) that the groups are spread over; each keeps equally many.
        fine: the groups are small and many.
        multiple: the groups of each stratum stay in multiples of this.
        tied: name that dimensions share which have to keep the same groups, or None.
        alibi: only every second, fourth, ... group can stay.
        floor: groups that stay at least, in each stratum.
        numbers: what modules keep of the width.
        config: the same for the config: name of the attribute to factor and divisor.
        recorded: the same for what only a config of ours says, of each block.
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
        """Whether the dimension is one of the whole model: its blocks, or the width of what runs through them."""
        return self.layer == WHOLE_MODEL

    @property
    def all_members(self) -> tuple[Member, ...]:
        """Producers and consumer."""
        return (*self.members, self.consumer)

    @property
    def num_parameters(self) -> int:
        """Base parameters of all groups."""
        return self.num_groups * self.parameters_per_group

    @property
    def of_experts(self) -> bool:
        """Whether the groups are experts of a mixture, or lie inside them."""
        return self.consumer.stacked or self.consumer.axis == "experts"

    @property
    def per_stratum(self) -> int:
        """Groups in each stratum."""
        return self.num_groups // self.strata


@dataclass(frozen=True, kw_only=True)
class Structure:
    """All prunable dimensions of a model.

    Attributes:
        spec: the declared architecture.
        blocks: names of the blocks, in the order of the forward pass.
        dimensions: in the order of the forward pass.
        num_parameters: all base parameters of the model, tied ones counted once.
        query_heads_per_group: query heads that go with one KV head.
        hidden_size: width of the residual stream.
        protected: indices of blocks that keep all of their groups.
        left_out: kinds of dimensions within blocks that the model has and that were not asked for.
        whole: kinds that span all blocks, which the model has and that were not asked for.
        any_widths: the model has our class already, which takes every number of heads.
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
        """Dimensions of one block, in the order of the forward pass."""
        return tuple(dimension for dimension in self.dimensions if dimension.layer == layer)

    def of_kind(self, kind: str) -> tuple[PrunableDimension, ...]:
        """Dimensions of one kind over all layers."""
        return tuple(dimension for dimension in self.dimensions if dimension.kind == kind)

    @property
    def kinds(self) -> tuple[str, ...]:
        """Kinds of dimension, in the order of the forward pass."""
        return tuple(Counter(dimension.kind for dimension in self.dimensions))

    @property
    def spans_blocks(self) -> bool:
        """Whether what is pruned is one dimension of the whole model."""
        return any(dimension.spans_blocks for dimension in self.dimensions)

    @property
    def open(self) -> tuple[PrunableDimension, ...]:
        """Dimensions that may shrink: those of blocks that are not protected."""
        return tuple(dimension for dimension in self.dimensions if dimension.layer not in self.protected)

    @property
    def prunable_parameters(self) -> int:
        """Parameters of all prunable dimensions: what a sparsity ratio is a share of."""
        return sum(dimension.num_parameters for dimension in self.dimensions)

    def shrunk(self, counts: Mapping[str, int]) -> Structure:
        """The structure of the model once it was cut: dimensions by name to the groups that are there now."""
        return replace(
            self,
            dimensions=tuple(
                replace(dimension, num_groups=counts.get(dimension.name, dimension.num_groups))
                for dimension in self.dimensions
            ),
        )
