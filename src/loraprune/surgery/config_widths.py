"""What the config of a cut model says of its widths: the family's own attributes, or a list where layers differ."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from loraprune.structure.blocks import write_depth_
from loraprune.structure.describe import head_dim_of, pruned_blocks

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from loraprune.structure.dimensions import Structure
    from loraprune.structure.plan import Plan


def stock_values(structure: Structure, plan: Plan) -> dict[str, int] | None:
    """What a stock config has to say for a plan, by attribute; None where it cannot."""
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
        ValueError: no stock config can say them, for one because they differ from layer to layer.
    """
    values = stock_values(structure, plan)
    if values is None:
        raise ValueError(
            "The widths differ from layer to layer, or the config has no attribute for them; a stock config holds one "
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
    """Whether a config lists widths that its family's own attributes cannot say."""
    return isinstance(getattr(config, "pruned", None), dict)


def described_widths(config: PretrainedConfig, structure: Structure, plan: Plan) -> dict[str, Any]:
    """What a config has to list where layers differ: of each block (``blocks``), and what modules keep (``numbers``).

    What the config lists of earlier cuts stays, where this one does not change it.
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
    """Let a config say the widths of a model that was cut to a plan, so that it can be described and cut again."""
    if stock_values(structure, plan) is None or is_described(config):
        described = described_widths(config, structure, plan)
        config.pruned = {**(config.pruned if is_described(config) else {}), **described}
    else:
        write_widths_(config, structure, plan)
