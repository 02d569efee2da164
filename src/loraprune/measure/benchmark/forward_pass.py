"""The forward pass of several models, timed in turns."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from loraprune.layers.inference import inference_mode
from loraprune.measure.benchmark.timing import Call, Contender, in_turns

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Inputs = Callable[["PreTrainedModel", torch.device], Mapping[str, Any]]
"""Makes what a model on a device is called with."""


def forward_contender(model: PreTrainedModel, inputs: Inputs) -> Contender:
    """A model's forward pass without gradients, in evaluation mode; inputs are made anew for each turn, untimed."""
    device = next(model.parameters()).device

    @contextmanager
    def turn() -> Iterator[Call]:
        given = inputs(model, device)
        with inference_mode(model), torch.no_grad():
            yield lambda: model(**given)

    return Contender(turn=turn, device=device)


def call_latency(
    models: Mapping[str, PreTrainedModel], inputs: Inputs, *, repeats: int = 10, warmup: int = 2
) -> dict[str, float]:
    """Median seconds of a call, for models that take turns: the ratios are to be trusted more than the seconds.

    Args:
        models: by name; each stays on its device.
        inputs: what to call a model with on its device; made anew for each call, outside the time.
        repeats: timed calls of each model.
        warmup: calls of each model that are not timed.
    """
    contenders = {name: forward_contender(model, inputs) for name, model in models.items()}
    return {name: times.median for name, times in in_turns(contenders, repeats=repeats, warmup=warmup).items()}


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
