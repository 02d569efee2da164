"""What the first cut of a run takes: the layers that it refits, and the calibration data that goes through them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from loraprune.allocation.schedule import cut_schedule
from loraprune.layers.axes import matrix_shape
from loraprune.layers.unwrap import base_layer
from loraprune.measure.estimation.refit import CalibrationSize, Consumer, cut_bytes

if TYPE_CHECKING:
    import torch

    from loraprune.measure.estimation.config import EstimateConfig
    from loraprune.measure.estimation.planning_target import Target
    from loraprune.measure.estimation.shape_models import ShapeModels
    from loraprune.pruning.config import PruningConfig

STEPS = 1000
"""Of a run whose length does not matter: cuts are fractions of it."""


def cut_size(
    models: ShapeModels,
    settings: EstimateConfig,
    target: Target,
    dtype: torch.dtype,
    block: Callable[[CalibrationSize], int],
) -> int:
    """Bytes that the first cut takes beside weights and optimizer; 0 where nothing is refitted.

    The first cut takes most: later ones find narrower layers.

    Args:
        models: of the estimate.
        settings: of the run.
        target: of the pruning.
        dtype: of the hidden states.
        block: says what a block makes in a forward pass on one batch of calibration data.
    """
    pruning = settings.pruning
    if not pruning.refit or target.ratio == 0.0 or settings.max_length is None:
        return 0
    data = CalibrationSize(
        sequences=pruning.calibration_sequences,
        tokens=settings.max_length,
        hidden=models.structure.hidden_size,
        itemsize=dtype.itemsize,
    )
    consumers = list(_consumers(models, target, _first_share(pruning)))
    return cut_bytes(consumers, data, block(data), device=settings.device) if consumers else 0


def _first_share(pruning: PruningConfig) -> float:
    """How much of the whole way the first cut goes."""
    first = cut_schedule(
        total_steps=STEPS,
        start=pruning.prune_start,
        end=pruning.prune_end,
        cuts=pruning.cuts,
        ratio=pruning.ratio,
        every=pruning.cut_every,
    )[0]
    return first.ratio / pruning.ratio


def _consumers(models: ShapeModels, target: Target, share: float) -> Iterator[Consumer]:
    seen = set()
    for dimension in models.structure.open:
        gone = dimension.num_groups - target.counts[dimension.name]
        if dimension.of_experts or not gone:
            continue
        outputs, inputs = matrix_shape(base_layer(models.dense.get_submodule(dimension.consumer.module)))
        kept = round(inputs - gone * dimension.consumer.group_size * share)
        consumer = Consumer(outputs=outputs, inputs=inputs, kept=kept)
        if consumer not in seen:
            seen.add(consumer)
            yield consumer
