"""What the first cut of a run takes, and the widths that a ratio comes to."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from loraprune.allocation.allocate import allocate, check_reachable
from loraprune.layers.axes import matrix_shape
from loraprune.layers.unwrap import base_layer
from loraprune.measure.estimation.refit import CalibrationSize, Consumer, cut_bytes
from loraprune.structure.plan import Plan

if TYPE_CHECKING:
    import torch

    from loraprune.measure.estimation.config import EstimateConfig
    from loraprune.measure.estimation.shape_models import ShapeModels
    from loraprune.pruning.config import PruningConfig
    from loraprune.structure.dimensions import Structure

STEPS = 1000
"""Of a run whose length does not matter: cuts are fractions of it."""


def cut_size(
    models: ShapeModels,
    settings: EstimateConfig,
    target: TargetShapes,
    dtype: torch.dtype,
    block: Callable[[CalibrationSize], int],
    processes: int = 1,
) -> int:
    """Bytes that the first cut takes beside weights and optimizer; 0 where nothing is refitted.

    The first cut takes most: later ones find narrower layers.

    Args:
        models: of the estimate.
        settings: of the run.
        target: of the pruning.
        dtype: of the hidden states.
        block: says what a block makes in a forward pass on one batch of calibration data.
        processes: of the run; the figure is that of one of them.
    """
    pruning = settings.pruning
    if not pruning.repairs or target.ratio == 0.0 or settings.max_length is None:
        return 0
    data = CalibrationSize(
        sequences=pruning.calibration_sequences,
        tokens=settings.max_length,
        hidden=models.structure.hidden_size,
        itemsize=dtype.itemsize,
        processes=processes if shares_calibration(models, pruning.calibration_sequences, processes) else 1,
    )
    consumers = list(_consumers(models, target, _first_share(pruning)))
    return cut_bytes(consumers, data, block(data), device=settings.device) if consumers else 0


def shares_calibration(models: ShapeModels, sequences: int, processes: int) -> bool:
    """Whether processes share the calibration data: as :class:`loraprune.calibration.block_by_block.LayerwisePass`."""
    return models.structure.spec.decoder is not None and sequences >= processes > 1


def _first_share(pruning: PruningConfig) -> float:
    """How much of the whole way the first cut goes."""
    first = pruning.schedule.cut_times(STEPS, pruning.target.ratio)[0]
    return first.ratio / pruning.target.ratio


def _consumers(models: ShapeModels, target: TargetShapes, share: float) -> Iterator[Consumer]:
    seen = set()
    for dimension in models.structure.open:
        gone = dimension.num_groups - target.counts[dimension.name]
        if dimension.of_experts or not gone:
            continue
        outputs, inputs = matrix_shape(base_layer(models.source.shapes.get_submodule(dimension.consumer.module)))
        kept = round(inputs - gone * dimension.consumer.group_size * share)
        consumer = Consumer(outputs=outputs, inputs=inputs, kept=kept)
        if consumer not in seen:
            seen.add(consumer)
            yield consumer


# The widths that a ratio comes to, before any score is known.


@dataclass(frozen=True, kw_only=True)
class TargetShapes:
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


def find_target(models: ShapeModels, pruning: PruningConfig) -> TargetShapes:
    """The widths after the last cut, every kind of dimension losing about the same share.

    Raises:
        ValueError: the ratio cannot be reached.
    """
    structure = models.structure
    depth = len(structure.blocks)
    full = {dimension.name: dimension.num_groups for dimension in structure}
    if pruning.target.ratio == 0.0:
        return TargetShapes(plan=None, blocks=models.few, depth=depth, counts=full, removed=0, ratio=0.0)
    check_reachable(
        structure, pruning.target.ratio, pruning.target.legal_widths(structure), pruning.target.allocation or "balanced"
    )
    short = models.alike and not structure.protected and not structure.spans_blocks
    looked_at = models.plain(models.few, torch.float32)[1] if short else structure
    plan = _even(looked_at, pruning)
    by_kind = {kind: plan.counts(looked_at, kind)[0] for kind in looked_at.kinds}
    counts = {d.name: by_kind[d.kind] if short else plan.count(d.name) for d in structure}
    removed = sum((d.num_groups - counts[d.name]) * d.parameters_per_group for d in structure)
    whole = structure.of_kind("blocks")
    return TargetShapes(
        plan=None if whole else plan,
        # Kept layers are no longer like the others.
        blocks=depth if structure.protected and not whole else models.few,
        depth=counts[whole[0].name] if whole else depth,
        counts=counts,
        removed=removed,
        ratio=removed / structure.prunable_parameters,
    )


def whole_plan(structure: Structure, pruning: PruningConfig) -> Plan:
    """What may stay of the whole model: an even split, in which the first block is wider where layers may differ."""
    if pruning.target.ratio == 0.0:
        return Plan.full(structure)
    plan = _even(structure, pruning)
    if pruning.target.allocation != "global":
        return plan
    full = Plan.full(structure).kept
    return Plan({**plan.kept, **{d.name: full[d.name] for d in structure if d.layer == 0}})


def _even(structure: Structure, pruning: PruningConfig) -> Plan:
    scores = {dimension.name: torch.ones(dimension.num_groups) for dimension in structure}
    return allocate(
        structure, Plan.full(structure), scores, pruning.target.ratio, pruning.target.legal_widths(structure), "uniform"
    )
