"""Plans for any structure, with widths that follow a rule and groups drawn at random."""

from __future__ import annotations

import random

from loraprune.structure.dimensions import PrunableDimension, Structure
from loraprune.structure.plan import Plan


def _groups(dimension: PrunableDimension, count: int, seed: str) -> tuple[int, ...]:
    """Random groups, ``count`` of each stratum; those that keep their ALiBi slopes where these decide."""
    each = dimension.per_stratum
    if dimension.alibi:
        return tuple(range(each // count - 1, each, each // count))
    source = random.Random(f"{seed} {dimension.tied or dimension.name}")
    kept: list[int] = []
    for stratum in range(dimension.strata):
        kept += sorted(stratum * each + group for group in source.sample(range(each), count))
    return tuple(kept)


def _legal(dimension: PrunableDimension, count: int) -> int:
    """The next smaller number of groups a stratum with which the model still works."""
    return max(dimension.floor, count // dimension.multiple * dimension.multiple, dimension.multiple)


def uniform_plan(structure: Structure, seed: str = "uniform") -> Plan:
    """Half of the groups of every dimension: equal widths in layers that were equal, different groups."""
    kept = {}
    for dimension in structure:
        half = dimension.per_stratum // 2 - (dimension.fine and dimension.per_stratum > 8)
        kept[dimension.name] = _groups(dimension, _legal(dimension, half), seed)
    return Plan(kept)


def ragged_plan(structure: Structure, seed: str = "ragged") -> Plan:
    """A half in layers with an even number, three quarters in the others: widths that differ from layer to layer."""
    kept = {}
    for dimension in structure:
        each = dimension.per_stratum
        count = each - each // 4 if dimension.layer % 2 else each // 2
        kept[dimension.name] = _groups(dimension, _legal(dimension, count), seed)
    return Plan(kept)
