"""Prefill and decoding of models in memory, as figures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from loraprune.layers.quantized import is_quantized_model
from loraprune.layers.unwrap import base_model
from loraprune.measure.benchmark.flops import countable_attention, flops_of
from loraprune.measure.benchmark.forward_pass import forward_contender
from loraprune.measure.benchmark.inference import after_prompt
from loraprune.measure.benchmark.memory import peak_bytes, weight_bytes
from loraprune.measure.benchmark.random_inputs import InputSize, in_words, prefill_inputs, reads_images, writes_text
from loraprune.measure.benchmark.result import Figure
from loraprune.measure.benchmark.rounds import Rounds
from loraprune.measure.benchmark.timing import Contender

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Models = Mapping[str, "PreTrainedModel"]


def prefill(models: Models, size: InputSize, rounds: Rounds) -> list[Figure]:
    """Time the forward pass that generating begins with, and count its memory and operations."""
    first = base_model(next(iter(models.values())))
    measure = "prefill" if writes_text(first) else "forward pass"
    given = {name: prefill_inputs(base_model(model), size, _device(model)) for name, model in models.items()}
    contenders = {
        name: forward_contender(model, lambda model, device, name=name: given[name])  # type: ignore[misc]
        for name, model in models.items()
    }
    words = in_words(first, size)
    examined = {name: _examined(contender, models[name]) for name, contender in contenders.items()}
    settings: dict[str, Any] = {"batch_size": size.batch_size, "input": words}
    tokens = None
    if not reads_images(first):
        settings["tokens"] = size.tokens
        tokens = size.batch_size * size.tokens
    if "logits_to_keep" in next(iter(given.values())):
        settings["logits"] = "of the last token"
    return [
        Figure(
            contender=name,
            measure=measure,
            settings=settings,
            times=times,
            tokens=tokens,
            items=size.batch_size,
            **examined[name],
        )
        for name, times in rounds.run(f"{measure}, {words}", contenders).items()
    ]


def decoding(models: Models, size: InputSize, new_tokens: int, rounds: Rounds) -> list[Figure]:
    """Time the decoding of one token after another behind a prompt of ``size``, with a cache."""
    ready = {name: after_prompt(model, size, new_tokens, _device(model)) for name, model in models.items()}
    contenders = {name: decoding.contender() for name, decoding in ready.items()}
    examined = {
        name: _examined(contender, models[name], held=ready[name].cache_bytes())
        for name, contender in contenders.items()
    }
    settings = {"batch_size": size.batch_size, "prompt_tokens": size.tokens, "new_tokens": new_tokens}
    times = rounds.run(f"decoding, batch {size.batch_size}", contenders)
    return [
        Figure(
            contender=name,
            measure="decoding",
            settings=settings,
            times=found,
            tokens=size.batch_size,
            items=size.batch_size,
            cache_bytes_per_token=ready[name].cache_bytes() / (size.batch_size * size.tokens),
            **examined[name],
        )
        for name, found in times.items()
    ]


def _examined(contender: Contender, model: PreTrainedModel, held: int = 0) -> dict[str, Any]:
    """Operations of a step, and peak memory; the operations of quantized layers cannot be counted.

    Memory comes second: an accelerator's libraries take their workspace in the first call, and keep it.
    """
    flops = None
    if is_quantized_model(model):
        with contender.turn() as call:
            call()
    else:
        with countable_attention(base_model(model)), contender.turn() as call:
            flops = flops_of(call) // contender.steps
    with contender.turn() as call:
        peak = peak_bytes(call, contender.device, held=weight_bytes(model) + held)
    return {"peak_bytes": peak, "flops": flops}


def _device(model: PreTrainedModel) -> torch.device:
    return next(model.parameters()).device
