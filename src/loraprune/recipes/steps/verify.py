"""Whether a result is loaded back before a run calls it done."""

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
    """What a saved result has to pass; None where that is switched off, or is said not to be possible here."""
    if not options.verify:
        return None
    if is_quantized_model(model):
        logger.info("The result is quantized, so that it is not loaded back to compare it.")
        return None
    needed = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters()) * _MARGIN
    if any(free_memory(device) < needed for device in {model.device, torch.device("cpu")}):
        logger.info("There is no memory to load the result back and compare it.")
        return None
    return partial(check_loads_back, model=model)
