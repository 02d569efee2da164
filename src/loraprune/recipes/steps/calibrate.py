"""The data that a run without training looks at."""

from __future__ import annotations

import logging

import torch

from loraprune.calibration.block_by_block import Calibration
from loraprune.importance.configs import Osscar
from loraprune.pruning.calibration_data import draw_batches, draw_calibration
from loraprune.pruning.oneshot_config import OneshotConfig
from loraprune.recipes.steps.prepared import PreparedOneshot, PreparedRun
from loraprune.surgery.repairs import LeastSquares

logger = logging.getLogger("loraprune")


def draw(prepared: PreparedOneshot) -> Calibration:
    """Rows that a run without training looks at."""
    config = prepared.oneshot
    return draw_rows(prepared, config.calibration_sequences, config.seed) if config.needs_data else []


def draw_rows(prepared: PreparedRun, count: int, seed: int) -> Calibration:
    """Rows of the data of a run."""
    if prepared.structure.spec.auto_class == "AutoModelForCausalLM" and prepared.task.name == "causal-lm":
        drawn: Calibration = draw_calibration(prepared.train_rows, count, seed)
        logger.info("Calibrating on %d sequences, %s tokens", len(drawn), f"{sum(map(len, drawn)):,}")
        return drawn
    assert prepared.collator is not None
    dtype = prepared.source.stored_dtype if prepared.source.loaded is not None else torch.float32
    batches = draw_batches(prepared.train_rows, prepared.collator, count, seed, dtype)
    rows = min(count, len(prepared.train_rows))
    logger.info("Calibrating on %d %s", rows, prepared.task.row_name)
    return batches


def facts_of(calibration: Calibration) -> dict[str, int]:
    """How much was looked at."""
    rows = sum(1 if isinstance(item, torch.Tensor) else len(next(iter(item.values()))) for item in calibration)
    tokens = sum(len(item) for item in calibration if isinstance(item, torch.Tensor))
    return {"rows": rows} | ({"tokens": tokens} if tokens else {})


def warn_of_few_tokens(prepared: PreparedOneshot, calibration: Calibration) -> None:
    """Say that there is less to look at than least squares have unknowns."""
    config = prepared.oneshot
    assert isinstance(config, OneshotConfig)
    solved = isinstance(config.repair, LeastSquares) or isinstance(config.criterion, Osscar)
    tokens = facts_of(calibration).get("tokens")
    widest = max(
        (dimension.per_stratum if dimension.of_experts else dimension.num_groups) * dimension.consumer.group_size
        for dimension in prepared.structure.open
    )
    if solved and tokens is not None and tokens < widest:
        logger.warning(
            "warning: %d calibration tokens are fewer than the %d features that the widest layer reads, so that least "
            "squares rest on their damping. More calibration sequences help.",
            tokens,
            widest,
        )
