"""From a declared architecture to the structure of one model: finds every module and checks every size."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from torch import nn

from loraprune.architectures import spec_for
from loraprune.architectures.spec import ArchitectureSpec, DimensionSpec, MemberSpec, Number, RowUnit, StackSpec
from loraprune.layers.axes import axis_length, is_stacked, parameters_per_position
from loraprune.layers.quantized import quantized_layers, shape_of
from loraprune.layers.unwrap import base_layer, base_model, find_module
from loraprune.structure.blocks import blocks_dimension, blocks_refusal
from loraprune.structure.dimensions import Member, PrunableDimension, Remembered, Structure
from loraprune.structure.hidden import hidden_dimension, hidden_refusal
from loraprune.structure.kinds import check_ragged, choose_kinds, protected_layers

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

__all__ = [
    "Member",
    "PrunableDimension",
    "Remembered",
    "Structure",
    "describe",
    "head_dim_of",
    "pruned_blocks",
]


def pruned_blocks(config: PretrainedConfig) -> dict[str, dict[str, Any]]:
    """Return the attributes in which single blocks differ from the config, from a config of ours."""
    pruned = getattr(config, "pruned", None)
    return dict(pruned.get("blocks", {})) if isinstance(pruned, dict) else {}


def head_dim_of(config: PretrainedConfig, spec: ArchitectureSpec) -> int:
    """Return the width of one head."""
    explicit = getattr(config, spec.config.head_dim, None)
    return int(explicit or getattr(config, spec.config.hidden) // getattr(config, spec.config.heads))


def _of_block(blocks: dict[str, dict[str, Any]], block: str) -> dict[str, Any]:
    """Entry of a block; a block's name may begin differently in a model with or without its head."""
    names = (name for name in blocks if name == block or name.endswith(f".{block}") or block.endswith(f".{name}"))
    return blocks.get(next(names, ""), {})


class _BlockSizes:
    """Sizes of attention and of experts in one block, from the config and its entry for that block."""

    def __init__(self, config: PretrainedConfig, spec: ArchitectureSpec, block: str) -> None:
        self._config = config
        self._own = _of_block(pruned_blocks(config), block)
        keys = spec.config
        heads = int(self.value(keys.heads) or 1)
        self.kv_heads = int(self.value(keys.kv_heads) or heads)
        if heads % self.kv_heads:
            raise ValueError(f"{heads} query heads cannot be shared evenly by {self.kv_heads} KV heads.")
        self.queries = heads // self.kv_heads
        hidden = getattr(config, keys.hidden, None)
        self.head_dim = head_dim_of(config, spec) if isinstance(hidden, int) and self.value(keys.heads) else 1
        self.units: dict[RowUnit, int] = {
            "query": self.queries * self.head_dim,
            "kv": self.head_dim,
            "head": self.head_dim,
            "channel": 1,
            "one": 1,
            "queries": self.queries,
        }
        self.strata = {
            "kv": self.kv_heads,
            "experts": int(self.value(keys.experts) or 1),
            "shared_experts": int(self.value(keys.shared_experts) or 1),
        }

    def value(self, key: str) -> Any:
        """Return an attribute of the config for this block."""
        return self._own.get(key, getattr(self._config, key, None))

    def factor(self, number: Number, strata: int) -> tuple[int, int]:
        """Return the factor and divisor that turn the number of remaining groups into a number."""
        return {"queries": (self.queries, 1), "groups": (1, 1), "stratum": (1, strata)}[number.count]


def _linear_layers(block: nn.Module) -> str:
    """Names and shapes of a block's layers, for an error."""
    found = [
        f"{name} {tuple(base_layer(module).weight.shape)}"
        for name, module in block.named_modules()
        if isinstance(getattr(base_layer(module), "weight", None), nn.Parameter) and "lora_" not in name
    ]
    return ", ".join(found)


def _resolve_member(
    spec: MemberSpec, model: nn.Module, block: str, sizes: _BlockSizes, in_block: DimensionSpec
) -> Member | None:
    """Resolve one member; None if it is optional and missing."""
    name = f"{block}.{spec.module}"
    module = find_module(model, name.removesuffix("."))
    if module is None or getattr(base_layer(module), spec.parameter, None) is None:
        is_list = module is not None and isinstance(base_layer(module), nn.ModuleList)
        if not is_list:
            if spec.optional:
                return None
            what = name if module is None else f"{name}.{spec.parameter}"
            raise ValueError(
                f"The architecture's description names {what!r}, which the model does not have. The layers of "
                f"{block} are: {_linear_layers(model.get_submodule(block))}."
            )
    try:
        axis_length(module, spec.axis, spec.parameter)
    except ValueError as error:
        raise ValueError(f"The architecture's description names the {spec.axis} side of {name!r}: {error}.") from None
    stacked = in_block.strata == "experts" and spec.axis != "experts" and is_stacked(base_layer(module), spec.parameter)
    return Member(
        module=name,
        axis=spec.axis,
        segments=tuple(sum(sizes.units[unit] for unit in segment) for segment in spec.segments),
        parameter=spec.parameter,
        stacked=stacked,
    )


def _stated_groups(spec: DimensionSpec, sizes: _BlockSizes, strata: int) -> int | None:
    """Number of groups that the config states for a block, or None."""
    for number in spec.widths:
        value = sizes.value(number.name)
        if isinstance(value, int):
            factor, divisor = sizes.factor(number, strata)
            return value * divisor // factor
    return None


def _check_length(
    model: nn.Module, member: Member, spec: MemberSpec, num_groups: int, strata: int, consumer: Member
) -> None:
    """Check that a side holds every group once."""
    length = axis_length(model.get_submodule(member.module), member.axis, member.parameter)
    groups = num_groups // strata if member.stacked else num_groups
    needed = groups * member.group_size
    if length != needed and not (spec.rest and length > needed):
        side = {"output": "output features", "input": "input features"}.get(member.axis, member.axis)
        raise ValueError(
            f"{member.module} has {length} {side}, but {groups} groups of {member.group_size} need {needed}: "
            "the model's config or description does not match its weights. Its shape is "
            f"{_shape(model, member)}, that of the consumer {consumer.module} {_shape(model, consumer)}."
        )


def _shape(model: nn.Module, member: Member) -> tuple[int, ...]:
    layer = base_layer(model.get_submodule(member.module))
    return (len(layer),) if isinstance(layer, nn.ModuleList) else tuple(getattr(layer, member.parameter).shape)


def _resolve_dimension(
    spec: DimensionSpec, stack: StackSpec, model: nn.Module, block: str, index: int, layer: int, sizes: _BlockSizes
) -> PrunableDimension | None:
    """Resolve a dimension of one block, and check that its members agree on the number of groups."""
    if spec.optional and find_module(model, f"{block}.{spec.consumer.module}") is None:
        return None
    consumer = _resolve_member(spec.consumer, model, block, sizes, spec)
    if consumer is None:
        return None
    strata = sizes.strata[spec.strata] if spec.strata else 1
    length = axis_length(model.get_submodule(consumer.module), consumer.axis, consumer.parameter)
    stated = _stated_groups(spec, sizes, strata)
    if stated is None:
        if length % consumer.group_size:
            raise ValueError(
                f"{consumer.module} has {length} {consumer.axis} features, which cannot be divided into groups of "
                f"{consumer.group_size}."
            )
        stated = length // consumer.group_size * (strata if consumer.stacked else 1)
    if stated % strata:
        raise ValueError(f"{consumer.module} has {stated} groups, which cannot be divided by {strata} {spec.strata}.")
    members = []
    parameters = 0
    for member_spec in (*spec.members, spec.consumer):
        member = _resolve_member(member_spec, model, block, sizes, spec)
        if member is not None:
            _check_length(model, member, member_spec, stated, strata, consumer)
            module = model.get_submodule(member.module)
            parameters += member.group_size * parameters_per_position(module, member.axis, member.parameter)
            members.append(member)
    name = spec.name or spec.kind
    if len(members) == 1:
        names = ", ".join(member.module for member in spec.members)
        raise ValueError(f"No layer produces the {name} that {consumer.module} reads: {block} has none of {names}.")
    return PrunableDimension(
        name=f"{stack.name}.{index}.{name}",
        kind=spec.kind,
        layer=layer,
        num_groups=stated,
        members=tuple(members[:-1]),
        consumer=consumer,
        parameters_per_group=parameters,
        strata=strata,
        floor=int(sizes.value(spec.floor) or 1) if spec.floor else 1,
        fine=spec.fine,
        # A width that was odd before may stay odd, because the model runs with it.
        multiple=math.gcd(spec.multiple, stated // strata),
        tied=f"{stack.name}.{name}" if spec.tied else None,
        alibi=spec.alibi,
        numbers=tuple(_remembered(number, model, block, sizes, strata) for number in spec.numbers),
        config={number.name: sizes.factor(number, strata) for number in spec.widths} or None,
        recorded={number.name: sizes.factor(number, strata) for number in spec.recorded},
    )


def _remembered(number: Number, model: nn.Module, block: str, sizes: _BlockSizes, strata: int) -> Remembered:
    factor, divisor = sizes.factor(number, strata)
    if number.module.startswith("/"):
        name = number.module[1:]
    else:
        name = f"{block}.{number.module}" if number.module else block
    if number.times is not None:
        factor *= int(getattr(base_layer(model.get_submodule(name)), number.times))
    return Remembered(module=name, name=number.name, factor=factor, divisor=divisor)


def _expand(model: nn.Module, path: str) -> list[str]:
    """Paths of all lists that a path with ``*`` matches."""
    head, star, tail = path.partition(".*.")
    if not star:
        return [path]
    names = [name for name, _ in model.get_submodule(head).named_children()]
    return [found for name in names for found in _expand(model, f"{head}.{name}.{tail}")]


def _blocks(spec: ArchitectureSpec, model: PreTrainedModel) -> Iterator[tuple[StackSpec, int, str]]:
    """Yield every block with its stack and its index in that stack."""
    for stack in spec.stacks:
        path = stack.blocks
        prefix = f"{model.base_model_prefix}."
        if model.base_model is model and path.startswith(prefix):
            path = path.removeprefix(prefix)
        try:
            lists = _expand(model, path)
            names = [f"{found}.{name}" for found in lists for name, _ in model.get_submodule(found).named_children()]
        except AttributeError:
            raise ValueError(
                f"The architecture's description names the blocks {stack.blocks!r}, which the model does not have. "
                f"`loraprune inspect` lists the model's layers."
            ) from None
        for index, name in enumerate(names):
            yield stack, index, name


def _count_base_parameters(model: PreTrainedModel) -> int:
    """Number of parameters of the model without its adapters, tied ones counted once."""
    adapters = {
        id(parameter) for name, parameter in model.named_parameters() if ".lora_" in name or "modules_to_save" in name
    }
    # Several weights may share a byte.
    packed = {id(layer.weight): math.prod(shape_of(layer)) for _, layer in quantized_layers(model)}
    return sum(
        packed.get(id(parameter), parameter.numel())
        for parameter in model.parameters()
        if id(parameter) not in adapters
    )


def describe(model: nn.Module, kinds: Sequence[str] | None = None, keep_layers: Sequence[int | str] = ()) -> Structure:
    """Find the prunable dimensions of a model; works on the meta device, on a ``PeftModel`` and on a pruned model.

    Args:
        model: model of a supported family.
        kinds: kinds of dimensions to prune; None takes the default of the family.
        keep_layers: indices of blocks that keep all of their groups; negative ones count from the end.

    Raises:
        UnsupportedArchitectureError: the family is not supported.
        ValueError: the description does not match the model's layers (the message names the layer), or the model has
            no such kinds or layers.
    """
    model = base_model(model)
    config = model.config
    spec = spec_for(config)
    found: list[PrunableDimension] = []
    blocks = []
    for layer, (stack, index, block) in enumerate(_blocks(spec, model)):
        sizes = _BlockSizes(config, spec, block)
        blocks.append(block)
        resolved = (
            _resolve_dimension(dimension, stack, model, block, index, layer, sizes) for dimension in stack.dimensions
        )
        found += [dimension for dimension in resolved if dimension is not None]
    whole = _whole_dimensions(model, spec, blocks, kinds or ())
    chosen = choose_kinds([*found, *whole], spec, kinds)
    if not chosen:
        raise ValueError(f"Nothing in this {spec.model_type} model can be pruned.")
    first = _BlockSizes(config, spec, blocks[0])
    hidden = getattr(config, spec.config.hidden, None)
    structure = Structure(
        spec=spec,
        blocks=tuple(blocks),
        dimensions=tuple(dimension for dimension in (*found, *whole) if dimension.kind in chosen),
        num_parameters=_count_base_parameters(model),
        query_heads_per_group=first.queries,
        hidden_size=hidden if isinstance(hidden, int) else 0,
        any_widths=isinstance(getattr(config, "pruned", None), dict),
        left_out=tuple(dict.fromkeys(d.kind for d in found if d.kind not in chosen and d.per_stratum > 1)),
        whole=tuple(dimension.kind for dimension in whole if dimension.kind not in chosen),
    )
    if keep_layers:
        check_ragged(structure, "Layers cannot be kept")
        structure = _protecting(structure, protected_layers(keep_layers, len(blocks)))
    return structure


def _whole_dimensions(
    model: PreTrainedModel, spec: ArchitectureSpec, blocks: Sequence[str], asked_for: Sequence[str]
) -> list[PrunableDimension]:
    """Build the dimensions that span all blocks, if the model can have them.

    Raises:
        ValueError: a requested dimension is impossible for the model; the message states the reason.
    """
    config = model.config
    reasons = {
        "blocks": blocks_refusal(model, config, spec, blocks),
        "hidden": hidden_refusal(model, config, spec, blocks),
    }
    for kind, reason in reasons.items():
        if reason is not None and kind in asked_for:
            raise ValueError(f"The dimension {kind!r} of this {spec.model_type} model cannot be pruned: {reason}.")
    makers = {
        "blocks": lambda: blocks_dimension(model, spec, blocks),
        "hidden": lambda: hidden_dimension(model, config, spec, blocks),
    }
    return [makers[kind]() for kind, reason in reasons.items() if reason is None]


def _protecting(structure: Structure, protected: frozenset[int]) -> Structure:
    """Protect layers, which keep all of their groups; whole blocks that are protected stay."""
    if "hidden" in structure.kinds:
        raise ValueError("All layers share the hidden size, so none can be kept. Omit --keep-layers.")
    dimensions = tuple(
        replace(dimension, floor=len(protected)) if dimension.spans_blocks else dimension for dimension in structure
    )
    return replace(structure, dimensions=dimensions, protected=protected)
