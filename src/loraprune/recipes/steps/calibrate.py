"""Calibration data of a run."""

from __future__ import annotations

import logging

import torch

from loraprune.calibration.block_by_block import Calibration
from loraprune.pruning.calibration_data import draw_batches, draw_calibration, num_tokens
from loraprune.recipes.steps.prepared import PreparedOneshot, PreparedRun
from loraprune.record.numbers import counted

logger = logging.getLogger("loraprune")


def draw(prepared: PreparedOneshot) -> Calibration:
    """Draw the calibration data of a run without training."""
    config = prepared.oneshot
    return draw_rows(prepared, config.calibration_sequences, config.seed) if config.needs_data else []


def draw_rows(prepared: PreparedRun, count: int, seed: int) -> Calibration:
    """Draw rows of a run's data as calibration data."""
    if prepared.structure.spec.auto_class == "AutoModelForCausalLM" and prepared.task.name == "causal-lm":
        drawn: Calibration = draw_calibration(prepared.train_rows, count, seed)
        tokens = counted(sum(map(len, drawn)), "token")
        logger.info("Calibrating on %s, %s", counted(len(drawn), "sequence"), tokens)
        return drawn
    assert prepared.collator is not None
    dtype = prepared.source.stored_dtype if prepared.source.loaded is not None else torch.float32
    batches = draw_batches(prepared.train_rows, prepared.collator, count, seed, dtype)
    logger.info("Calibrating on %s", counted(min(count, len(prepared.train_rows)), prepared.task.row_name))
    return batches


def facts_of(calibration: Calibration) -> dict[str, int]:
    """Return the numbers of rows and tokens of calibration data."""
    rows = sum(1 if isinstance(item, torch.Tensor) else len(next(iter(item.values()))) for item in calibration)
    tokens = num_tokens(calibration)
    return {"rows": rows} | ({"tokens": tokens} if tokens else {})
