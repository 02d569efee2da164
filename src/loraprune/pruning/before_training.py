"""Cuts before the first step of training: those of pruning without training, inside a run of the joint recipe."""

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
    """Whether a run begins with a cut that is not made yet."""
    return run.config.cuts_first and run.config.target.ratio > 0.0 and not run.records


def looks_at_data(run: PruningRun) -> bool:
    """Whether the scores or the repair of such a cut need calibration data."""
    return run.refits or run.config.criterion.reads_data


def cut_first_(
    run: PruningRun,
    model: nn.Module,
    calibration: Calibration,
    progress: ProgressOf = lambda what, done, total: None,
) -> None:
    """Cut a model to the ratio of a run before the run begins; see :func:`loraprune.pruning.oneshot.prune_`.

    Args:
        run: that has not begun; its groups and the record of the cut change.
        model: unpruned.
        calibration: token ids or mappings of the model's inputs; may be empty where :func:`looks_at_data` is false.
        progress: hears how far the work is.

    Raises:
        ValueError: the model is quantized.
    """
    if is_quantized_model(model):
        raise ValueError(
            "All is to be cut before the first step, which reads and writes weights in 16 or 32 bits, and the base is "
            "quantized. Leave the quantization out, or cut while it is tuned: a prune_end above 0."
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
