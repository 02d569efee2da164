"""The check that loads a saved result and compares its outputs."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from loraprune.checkpoint.load_back import check_loads_back
from loraprune.layers.quantized import is_quantized_model
from loraprune.measure.benchmark.memory import free_memory

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from loraprune.tasks.options import RunOptions

logger = logging.getLogger("loraprune")
_MARGIN = 1.2


def load_back_check(options: RunOptions, model: PreTrainedModel) -> Callable[[Path], None] | None:
    """Return the check of a saved result; None if it is switched off, or impossible, which is then logged."""
    if not options.verify:
        return None
    if is_quantized_model(model):
        logger.info("The result is quantized, so its outputs are not compared after saving.")
        return None
    needed = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters()) * _MARGIN
    if any(free_memory(device) < needed for device in {model.device, torch.device("cpu")}):
        logger.info("There is not enough memory to load the saved result and compare its outputs.")
        return None
    return partial(check_loads_back, model=model)
