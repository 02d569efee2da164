"""Norms of a run without training, tuned after the cut."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from loraprune.calibration.block_by_block import Calibration, token_sequences
from loraprune.calibration.progress import Progress
from loraprune.processes.shared_work import together
from loraprune.pruning.oneshot_config import OneshotConfig
from loraprune.record.pruning_course import NormsRecord
from loraprune.surgery.tune_norms import NormTuning, norm_parameters, why_norms_stay

if TYPE_CHECKING:
    from loraprune.recipes.steps.prepared import PreparedOneshot
    from loraprune.record.saved_steps import SavedSteps

logger = logging.getLogger("loraprune")

_STEP = "norms"


def norm_tuning(
    prepared: PreparedOneshot, config: OneshotConfig, model: Any, calibration: Calibration, saved: SavedSteps
) -> Callable[[Progress], NormsRecord | None]:
    """Store what the dense model predicts; return a function that tunes the norms of the cut model.

    Args:
        prepared: the run.
        config: what is pruned.
        model: the model, not yet cut.
        calibration: its rows.
        saved: what an interrupted run finished.
    """
    finished = saved.found(_STEP)
    tuning = None if finished is not None else _tuning(prepared, config, model, calibration)

    def tune_(progress: Progress) -> NormsRecord | None:
        parameters = norm_parameters(model)
        if finished is not None:
            for name, value in finished.tensors.items():
                parameters[name].data.copy_(value)
            return NormsRecord(**finished.facts)
        if tuning is None:
            return None
        found = together(lambda: tuning.tune_(model, prepared.structure, progress))
        saved.keep(_STEP, {name: value.detach() for name, value in parameters.items()}, asdict(found))
        return found

    return tune_


def _tuning(
    prepared: PreparedOneshot, config: OneshotConfig, model: Any, calibration: Calibration
) -> NormTuning | None:
    """Store what the dense model predicts; None, with a line in the log, if the norms cannot be tuned."""
    if not config.norm_steps:
        return None
    why = why_norms_stay(model, prepared.structure, calibration)
    if prepared.computing != prepared.device:
        why = "with --offload, the model is not on the accelerator as a whole"
    if why is not None:
        logger.info("The norms are not tuned: %s.", why)
        return None
    rows, steps = token_sequences(prepared.structure, calibration), config.norm_steps
    assert rows
    return together(lambda: NormTuning(model, rows, steps=steps, seed=config.seed))
