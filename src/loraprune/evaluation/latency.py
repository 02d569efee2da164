"""Latency of a forward pass, of several models in one go."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch

from loraprune.inference import inference_mode

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def forward_latency(
    models: Mapping[str, PreTrainedModel], *, batch_size: int = 1, tokens: int, repeats: int = 10, warmup: int = 2
) -> dict[str, float]:
    """Median seconds of a forward pass of random tokens, for language models that take turns.

    Args:
        models: by name; each stays on its device.
        batch_size: sequences in a pass.
        tokens: tokens in a sequence.
        repeats: timed passes of each model.
        warmup: passes of each model that are not timed.
    """

    def inputs(model: PreTrainedModel, device: torch.device) -> dict[str, Any]:
        ids = torch.randint(model.config.vocab_size, (batch_size, tokens), device=device)
        return {"input_ids": ids, "use_cache": False}

    return call_latency(models, inputs, repeats=repeats, warmup=warmup)


@torch.no_grad()
def call_latency(
    models: Mapping[str, PreTrainedModel],
    inputs: Callable[[PreTrainedModel, torch.device], Mapping[str, Any]],
    *,
    repeats: int = 10,
    warmup: int = 2,
) -> dict[str, float]:
    """Median seconds of a call, for models that take turns.

    They take turns so that whatever else the machine does hits all of them alike: the ratios are to be trusted more
    than the seconds.

    Args:
        models: by name; each stays on its device.
        inputs: what to call a model with on its device; made anew for each call, outside the time.
        repeats: timed calls of each model.
        warmup: calls of each model that are not timed.
    """
    times: dict[str, list[float]] = {name: [] for name in models}
    for turn in range(warmup + repeats):
        for name, model in models.items():
            device = next(model.parameters()).device
            given = inputs(model, device)
            with inference_mode(model):
                _synchronize(device)
                start = time.perf_counter()
                model(**given)
                _synchronize(device)
            if turn >= warmup:
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}
