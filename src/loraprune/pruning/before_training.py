"""Cuts before the first training step: the joint recipe makes them as pruning without training does."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING

from loraprune.calibration.block_by_block import Calibration
from loraprune.calibration.progress import ProgressOf
from loraprune.layers.quantized import is_quantized_model
from loraprune.pruning.calibration_data import warn_of_few_tokens
from loraprune.pruning.group_run import GroupRun
from loraprune.pruning.oneshot import prune_, settled_repair
from loraprune.surgery.repairs import NoRepair

if TYPE_CHECKING:
    from torch import nn

    from loraprune.pruning.run import PruningRun


def is_due(run: PruningRun) -> bool:
    """Whether a cut before the first step is still to be made."""
    return run.config.cuts_first and run.config.target.ratio > 0.0 and not run.records


def looks_at_data(run: PruningRun) -> bool:
    """Whether the scores or the repair of that cut need calibration data."""
    return run.refits or run.config.criterion.reads_data


def cut_first_(
    run: PruningRun,
    model: nn.Module,
    calibration: Calibration,
    progress: ProgressOf = lambda what, done, total: None,
) -> None:
    """Cut a model to the ratio of a run before training; see :func:`loraprune.pruning.oneshot.prune_`.

    Args:
        run: run that has not begun; the cut changes its groups and adds a record.
        model: unpruned model.
        calibration: token ids or mappings of the model's inputs; may be empty if :func:`looks_at_data` is false.
        progress: called as the work advances.

    Raises:
        ValueError: the model is quantized.
    """
    if is_quantized_model(model):
        raise ValueError(
            "The base is quantized, and a cut before the first step needs weights in 16 or 32 bits. Leave the "
            "quantization out, or cut during training: set prune_end above 0."
        )
    assert isinstance(run, GroupRun)
    config = run.config
    warn_of_few_tokens(run.structure, calibration, config.repair, config.criterion)
    repair = settled_repair(config.repair, model, run.structure, calibration) if run.refits else NoRepair()
    started = time.monotonic()
    records = prune_(
        model,
        run.groups,
        calibration,
        repair=repair,
        cuts=config.schedule.cuts,
        seed=config.seed,
        progress=progress,
    )
    run.records.append(replace(records[-1], seconds=time.monotonic() - started))
