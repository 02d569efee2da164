"""The widths that a ratio comes to, before any score is known."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from loraprune.allocation.uniform import allocate, check_reachable
from loraprune.structure.plan import Plan
from loraprune.structure.widths import LegalWidths, legal_widths

if TYPE_CHECKING:
    from loraprune.measure.estimation.shape_models import ShapeModels
    from loraprune.pruning.config import PruningConfig
    from loraprune.structure.dimensions import Structure


@dataclass(frozen=True, kw_only=True)
class Target:
    """What a model is pruned to.

    Attributes:
        plan: what stays inside the blocks of a model with ``blocks`` blocks; None where all of it does.
        blocks: of the model that stands for the whole one.
        depth: blocks of the whole one.
        counts: groups that stay in each dimension of the whole model.
        removed: parameters that go.
        ratio: the same as a share of the prunable ones.
    """

    plan: Plan | None
    blocks: int
    depth: int
    counts: dict[str, int]
    removed: int
    ratio: float


def find_target(models: ShapeModels, pruning: PruningConfig) -> Target:
    """The widths after the last cut, every kind of dimension losing about the same share.

    Raises:
        ValueError: the ratio cannot be reached.
    """
    structure = models.structure
    depth = len(structure.blocks)
    full = {dimension.name: dimension.num_groups for dimension in structure}
    if pruning.ratio == 0.0:
        return Target(plan=None, blocks=models.few, depth=depth, counts=full, removed=0, ratio=0.0)
    check_reachable(structure, pruning.ratio, _legal(structure, pruning), pruning.allocation)
    short = models.alike and not structure.protected and not structure.spans_blocks
    looked_at = models.plain(models.few, torch.float32)[1] if short else structure
    plan = _even(looked_at, pruning)
    by_kind = {kind: plan.counts(looked_at, kind)[0] for kind in looked_at.kinds}
    counts = {d.name: by_kind[d.kind] if short else plan.count(d.name) for d in structure}
    removed = sum((d.num_groups - counts[d.name]) * d.parameters_per_group for d in structure)
    whole = structure.of_kind("blocks")
    return Target(
        plan=None if whole else plan,
        # Kept layers are no longer like the others.
        blocks=depth if structure.protected and not whole else models.few,
        depth=counts[whole[0].name] if whole else depth,
        counts=counts,
        removed=removed,
        ratio=removed / structure.prunable_parameters,
    )


def _legal(structure: Structure, pruning: PruningConfig) -> LegalWidths:
    return legal_widths(structure, channel_multiple=pruning.channel_multiple, any_head_count=pruning.free_head_counts)


def _even(structure: Structure, pruning: PruningConfig) -> Plan:
    scores = {dimension.name: torch.ones(dimension.num_groups) for dimension in structure}
    return allocate(structure, Plan.full(structure), scores, pruning.ratio, _legal(structure, pruning), "uniform")
