"""Cuts before the first step of training: those of pruning without training, inside a run of the joint recipe."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from loraprune.calibration.block_by_block import Calibration
from loraprune.calibration.progress import ProgressOf
from loraprune.layers.quantized import is_quantized_model
from loraprune.pruning.oneshot import WEIGHT_METHODS, ScoreOptions, StructuredOptions, prune_, settled_repair
from loraprune.pruning.run import CutRecord, PruningRun

if TYPE_CHECKING:
    from torch import nn

    from loraprune.pruning.config import PruningConfig


def is_due(run: PruningRun) -> bool:
    """Whether a run begins with a cut that is not made yet."""
    return run.config.cuts_first and run.config.ratio > 0.0 and not run.records


def looks_at_data(run: PruningRun) -> bool:
    """Whether the scores or the repair of such a cut need calibration data."""
    return run.refits or run.config.criterion_name not in WEIGHT_METHODS


def cut_first_(
    run: PruningRun,
    model: nn.Module,
    calibration: Calibration,
    progress: ProgressOf = lambda what, done, total: None,
) -> None:
    """Cut a model to the ratio of a run before the run begins; see :func:`loraprune.pruning.oneshot.prune_`.

    Args:
        run: that has not begun; plan, importance and record of the cut go into it.
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
    started, config = time.monotonic(), run.config
    repair = settled_repair(config.repair, model, run.structure, calibration) if run.refits else "none"
    options = StructuredOptions(
        ratio=config.ratio,
        scores=scores_of(config),
        allocation=config.allocation,
        repair=repair,
        damping=config.damping,
        cuts=config.cuts,
    )
    result = prune_(model, run.structure, run.legal_widths(), calibration, options, progress)
    run.plan, run.importance = result.plan, result.importance
    widths = {kind: list(run.plan.counts(run.structure, kind)) for kind in run.structure.kinds}
    errors = result.errors[-1] if result.errors else ()
    run.records.append(CutRecord(0, run.ratio, widths, {}, errors, time.monotonic() - started))


def scores_of(config: PruningConfig) -> ScoreOptions:
    """How groups are scored then."""
    criterion = config.criterion_options
    return ScoreOptions(
        method=criterion.name,
        damping=config.damping,
        seed=criterion.seed,
        taylor_form=criterion.taylor_form,
        group_reduction=criterion.group_reduction,
        offload_grads=criterion.offload_grads,
        own=criterion.own,
    )
