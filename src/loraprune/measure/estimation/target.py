"""Memory of the first cut of a run, and the widths for a ratio."""

from __future__ import annotations

from collections import Counter
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
"""Number of steps of a run whose length does not matter, because cuts are fractions of it."""


def cut_size(
    models: ShapeModels,
    settings: EstimateConfig,
    target: TargetShapes,
    dtype: torch.dtype,
    block: Callable[[CalibrationSize], int],
    processes: int = 1,
) -> int:
    """Return the bytes of the first cut besides weights and optimizer; 0 without a refit.

    The first cut needs the most memory, because later ones have narrower layers.

    Args:
        models: models of the estimate.
        settings: settings of the run.
        target: target of the pruning.
        dtype: dtype of the hidden states.
        block: returns the bytes of a block's forward pass on one batch of calibration data.
        processes: number of processes of the run; the result is for one of them.
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
    return cut_bytes(consumers, data, block(data)) if consumers else 0


def shares_calibration(models: ShapeModels, sequences: int, processes: int) -> bool:
    """Whether processes share calibration data, as in :class:`loraprune.calibration.block_by_block.LayerwisePass`."""
    return models.structure.spec.decoder is not None and sequences >= processes > 1


def _first_share(pruning: PruningConfig) -> float:
    """Share of the whole target that the first cut reaches."""
    first = pruning.schedule.cut_times(STEPS, pruning.target.ratio)[0]
    return first.ratio / pruning.target.ratio


def _consumers(models: ShapeModels, target: TargetShapes, share: float) -> Iterator[Consumer]:
    seen, cut_in = set(), Counter[int]()
    for dimension in models.structure.open:
        gone = dimension.num_groups - target.counts[dimension.name]
        if dimension.of_experts or not gone:
            continue
        outputs, inputs = matrix_shape(base_layer(models.source.shapes.get_submodule(dimension.consumer.module)))
        kept = round(inputs - gone * dimension.consumer.group_size * share)
        # The parts before it, such as attention; cut one by one only where there is a decoder.
        finished = cut_in[dimension.layer] if models.structure.spec.decoder is not None else 0
        cut_in[dimension.layer] += 1
        consumer = Consumer(outputs=outputs, inputs=inputs, kept=kept, finished=finished)
        if consumer not in seen:
            seen.add(consumer)
            yield consumer


# The widths for a ratio, before any score is known.


@dataclass(frozen=True, kw_only=True)
class TargetShapes:
    """Shapes of a pruning target.

    Attributes:
        plan: groups kept inside the blocks of a model with ``blocks`` blocks; None if all are kept.
        blocks: number of blocks of the model that represents the whole one.
        depth: number of blocks of the whole one.
        counts: groups kept in each dimension of the whole model.
        removed: number of removed parameters.
        ratio: removed share of the prunable parameters.
    """

    plan: Plan | None
    blocks: int
    depth: int
    counts: dict[str, int]
    removed: int
    ratio: float


def find_target(models: ShapeModels, pruning: PruningConfig) -> TargetShapes:
    """Return the widths after the last cut if every kind of dimension loses about the same share.

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
        # Protected layers differ from the others.
        blocks=depth if structure.protected and not whole else models.few,
        depth=counts[whole[0].name] if whole else depth,
        counts=counts,
        removed=removed,
        ratio=removed / structure.prunable_parameters,
    )


def whole_plan(structure: Structure, pruning: PruningConfig) -> Plan:
    """A possible plan of the whole model: an even split, with a wider first block if layers may differ."""
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
