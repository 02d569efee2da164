"""What can be pruned in a model: its prunable dimensions, their members and their sizes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from loraprune.architectures import spec_for
from loraprune.architectures.spec import ArchitectureSpec, Axis, DimensionSpec, MemberSpec, Unit
from loraprune.wrapping import base_layer, base_model

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel


@dataclass(frozen=True, kw_only=True)
class Member:
    """One side of one linear layer that shrinks with a dimension, resolved against a model.

    Attributes:
        module: name of the layer in the model (not in the ``PeftModel`` around it).
        axis: ``output`` (rows and bias) or ``input`` (columns).
        segments: positions a group takes in each segment; segments stand one after the other along the axis, and
            each holds every group once, in order. What lies behind the last segment belongs to no group and stays.
    """

    module: str
    axis: Axis
    segments: tuple[int, ...]

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
        parts = []
        offset = 0
        for size in self.segments:
            inside = torch.arange(size, device=groups.device)
            parts.append((offset + groups[:, None] * size + inside).flatten())
            offset += num_groups * size
        parts.append(torch.arange(offset, length, device=groups.device))
        return torch.cat(parts)

    def group_sums(self, values: torch.Tensor, num_groups: int) -> torch.Tensor:
        """Sum ``values`` of shape ``(length of the axis,)`` over the positions of each group: ``(num_groups,)``."""
        total = values.new_zeros(num_groups)
        offset = 0
        for size in self.segments:
            total += values[offset : offset + num_groups * size].view(num_groups, size).sum(1)
            offset += num_groups * size
        return total


@dataclass(frozen=True, kw_only=True)
class PrunableDimension:
    """A dimension shared by coupled weights that can be shortened: the heads, or the channels, of one layer.

    Attributes:
        name: for example ``layers.3.heads``.
        kind: ``heads`` (KV heads, each with its query heads) or ``channels`` (of the FFN).
        layer: index of the decoder block.
        num_groups: groups in the model as described.
        members: the layers that produce the dimension.
        consumer: the layer that reads it.
        parameters_per_group: base parameters that go with one group.
    """

    name: str
    kind: str
    layer: int
    num_groups: int
    members: tuple[Member, ...]
    consumer: Member
    parameters_per_group: int

    @property
    def all_members(self) -> tuple[Member, ...]:
        """Producers and consumer."""
        return (*self.members, self.consumer)

    @property
    def num_parameters(self) -> int:
        """Base parameters of all groups."""
        return self.num_groups * self.parameters_per_group


@dataclass(frozen=True, kw_only=True)
class Structure:
    """All prunable dimensions of a model.

    Attributes:
        spec: the declared architecture.
        blocks: names of the decoder blocks, in the order of the forward pass.
        dimensions: in the order of the forward pass.
        num_parameters: all base parameters of the model, tied ones counted once.
        query_heads_per_group: query heads that go with one KV head.
        hidden_size: width of the residual stream.
    """

    spec: ArchitectureSpec
    blocks: tuple[str, ...]
    dimensions: tuple[PrunableDimension, ...]
    num_parameters: int
    query_heads_per_group: int
    hidden_size: int

    def __iter__(self) -> Iterator[PrunableDimension]:
        return iter(self.dimensions)

    def of_layer(self, layer: int) -> tuple[PrunableDimension, ...]:
        """Dimensions of one decoder block, in the order of the forward pass."""
        return tuple(dimension for dimension in self.dimensions if dimension.layer == layer)

    def of_kind(self, kind: str) -> tuple[PrunableDimension, ...]:
        """Dimensions of one kind over all layers."""
        return tuple(dimension for dimension in self.dimensions if dimension.kind == kind)

    @property
    def kinds(self) -> tuple[str, ...]:
        """Kinds of dimension, in the order of the forward pass."""
        return tuple(Counter(dimension.kind for dimension in self.dimensions))

    @property
    def prunable_parameters(self) -> int:
        """Parameters of all prunable dimensions: what a sparsity ratio is a share of."""
        return sum(dimension.num_parameters for dimension in self.dimensions)


def _axis_length(layer: nn.Linear, axis: Axis) -> int:
    return layer.out_features if axis == "output" else layer.in_features


def _side_parameters(layer: nn.Linear, member: Member) -> int:
    """Parameters of a layer that go with one group on one side."""
    other = _axis_length(layer, "input" if member.axis == "output" else "output")
    has_bias = member.axis == "output" and layer.bias is not None
    return member.group_size * (other + has_bias)


def _resolve_member(spec: MemberSpec, block: str, units: dict[Unit, int]) -> Member:
    return Member(
        module=f"{block}.{spec.module}",
        axis=spec.axis,
        segments=tuple(sum(units[unit] for unit in segment) for segment in spec.segments),
    )


def _resolve_dimension(
    spec: DimensionSpec, model: nn.Module, block: str, layer: int, num_groups: int, units: dict[Unit, int]
) -> PrunableDimension:
    """Resolve a dimension of one block and check that its members agree on the number of groups."""
    members = tuple(_resolve_member(member, block, units) for member in spec.members)
    consumer = _resolve_member(spec.consumer, block, units)
    parameters = 0
    for member in (*members, consumer):
        try:
            module = base_layer(model.get_submodule(member.module))
        except AttributeError:
            raise ValueError(
                f"The architecture's description names {member.module!r}, which the model does not have."
            ) from None
        length = _axis_length(module, member.axis)
        if length != num_groups * member.group_size:
            raise ValueError(
                f"{member.module} has {length} {member.axis} features, but {num_groups} groups of "
                f"{member.group_size} need {num_groups * member.group_size}: the model's config and its weights "
                "do not agree."
            )
        parameters += _side_parameters(module, member)
    return PrunableDimension(
        name=f"layers.{layer}.{spec.kind}",
        kind=spec.kind,
        layer=layer,
        num_groups=num_groups,
        members=members,
        consumer=consumer,
        parameters_per_group=parameters,
    )


def head_dim_of(config: PretrainedConfig, spec: ArchitectureSpec) -> int:
    """Width of one head."""
    explicit = getattr(config, spec.config.head_dim, None)
    return int(explicit or getattr(config, spec.config.hidden) // getattr(config, spec.config.heads))


def _count_base_parameters(model: PreTrainedModel) -> int:
    """Parameters of the model without its adapters, tied ones once."""
    adapters = {
        id(parameter) for name, parameter in model.named_parameters() if ".lora_" in name or "modules_to_save" in name
    }
    return sum(parameter.numel() for parameter in model.parameters() if id(parameter) not in adapters)


def describe(model: nn.Module) -> Structure:
    """Find what can be pruned in a model; works on the meta device, on a ``PeftModel`` and on a pruned model.

    Raises:
        UnsupportedArchitectureError: the family has no description.
        ValueError: the description and the model's layers do not agree; the message names the layer.
    """
    model = base_model(model)
    config = model.config
    spec = spec_for(config)
    keys = spec.config
    heads = int(getattr(config, keys.heads))
    kv_heads = int(getattr(config, keys.kv_heads, None) or heads)
    head_dim = head_dim_of(config, spec)
    if heads % kv_heads:
        raise ValueError(f"{heads} query heads cannot be shared evenly by {kv_heads} KV heads.")
    units: dict[Unit, int] = {"query": heads // kv_heads * head_dim, "kv": head_dim, "channel": 1}
    counts = {"heads": kv_heads, "channels": int(getattr(config, keys.channels))}
    blocks = tuple(f"{spec.blocks}.{index}" for index in range(len(list(model.get_submodule(spec.blocks).children()))))
    dimensions = tuple(
        _resolve_dimension(dimension, model, block, layer, counts[dimension.kind], units)
        for layer, block in enumerate(blocks)
        for dimension in spec.dimensions
    )
    return Structure(
        spec=spec,
        blocks=blocks,
        dimensions=dimensions,
        num_parameters=_count_base_parameters(model),
        query_heads_per_group=heads // kv_heads,
        hidden_size=int(getattr(config, keys.hidden)),
    )
