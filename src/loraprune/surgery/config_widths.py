"""Widths in the config of a cut model: the family's own attributes, or a list if layers differ."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from loraprune.structure.blocks import write_depth_
from loraprune.structure.describe import head_dim_of, pruned_blocks

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from loraprune.structure.dimensions import Structure
    from loraprune.structure.plan import Plan


def stock_values(structure: Structure, plan: Plan) -> dict[str, int] | None:
    """Return the values of a stock config for a plan, by attribute; None if a stock config cannot express the plan."""
    values: dict[str, int] = {}
    for dimension in structure:
        count = plan.count(dimension.name)
        if not dimension.config and count < dimension.num_groups:
            return None
        for key, (factor, divisor) in (dimension.config or {}).items():
            if values.setdefault(key, count * factor // divisor) != count * factor // divisor:
                return None
    return values


def write_widths_(config: PretrainedConfig, structure: Structure, plan: Plan) -> None:
    """Write the widths of a plan into a stock config, in place.

    Raises:
        ValueError: no stock config can express them, for example because they differ from layer to layer.
    """
    values = stock_values(structure, plan)
    if values is None:
        raise ValueError(
            "The widths differ from layer to layer, or the config has no attribute for them. A stock config holds one "
            "width for all layers."
        )
    keys = structure.spec.config
    head_dim = head_dim_of(config, structure.spec) if {keys.heads, keys.hidden} & set(values) else None
    for dimension in structure.of_kind("blocks"):
        write_depth_(config, structure.spec, plan.kept[dimension.name], dimension.num_groups)
    for key, value in {**values, **structure.spec.fixed}.items():
        setattr(config, key, value)
    if head_dim is not None:
        setattr(config, keys.head_dim, head_dim)


def is_described(config: PretrainedConfig) -> bool:
    """Whether a config lists widths that its family's own attributes cannot express."""
    return isinstance(getattr(config, "pruned", None), dict)


def described_widths(config: PretrainedConfig, structure: Structure, plan: Plan) -> dict[str, Any]:
    """Return the config entry if layers differ: widths per block (``blocks``) and numbers per module (``numbers``).

    Entries from earlier cuts stay unless this cut changes them.
    """
    earlier = config.pruned if is_described(config) else {}
    numbers = {name: dict(kept) for name, kept in earlier.get("numbers", {}).items()}
    blocks = {block: dict(own) for block, own in pruned_blocks(config).items()}
    for dimension in structure:
        count = plan.count(dimension.name)
        for number in dimension.numbers:
            numbers.setdefault(number.module, {})[number.name] = number.value(count)
        own = blocks.setdefault(structure.blocks[dimension.layer], {})
        said = dimension.config or dimension.recorded
        own |= {key: count * factor // divisor for key, (factor, divisor) in said.items()}
    return {"blocks": blocks, "numbers": numbers}


def update_config_(config: PretrainedConfig, structure: Structure, plan: Plan) -> None:
    """Write the widths of a cut model into its config, which allows the model to be described and cut again."""
    if stock_values(structure, plan) is None or is_described(config):
        described = described_widths(config, structure, plan)
        config.pruned = {**(config.pruned if is_described(config) else {}), **described}
    else:
        write_widths_(config, structure, plan)
