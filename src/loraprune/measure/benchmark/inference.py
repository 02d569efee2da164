"""Prefill and decoding of models, measured in turns."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from loraprune.layers.quantized import is_quantized_model
from loraprune.layers.unwrap import base_model, eval_mode
from loraprune.measure.benchmark.flops import countable_attention, flops_of
from loraprune.measure.benchmark.memory import peak_bytes, weight_bytes
from loraprune.measure.benchmark.random_inputs import (
    InputSize,
    inputs_in_words,
    last_logits,
    prefill_inputs,
    random_ids,
    reads_images,
    writes_text,
)
from loraprune.measure.benchmark.result import BenchFigure
from loraprune.measure.benchmark.timing import Call, Rounds, TurnTaker, in_turns

if TYPE_CHECKING:
    from transformers import PreTrainedModel


Models = Mapping[str, "PreTrainedModel"]


def prefill(models: Models, size: InputSize, rounds: Rounds) -> list[BenchFigure]:
    """Time the forward pass at the start of generation, and measure its memory and operations."""
    first = base_model(next(iter(models.values())))
    measure = "prefill" if writes_text(first) else "forward pass"
    given = {name: prefill_inputs(base_model(model), size, _device(model)) for name, model in models.items()}
    contenders = {
        name: forward_contender(model, lambda model, device, name=name: given[name])  # type: ignore[misc]
        for name, model in models.items()
    }
    words = inputs_in_words(first, size)
    examined = {name: _examined(contender, models[name]) for name, contender in contenders.items()}
    settings: dict[str, Any] = {"batch_size": size.batch_size, "input": words}
    tokens = None
    if not reads_images(first):
        settings["tokens"] = size.tokens
        tokens = size.batch_size * size.tokens
    if "logits_to_keep" in next(iter(given.values())):
        settings["logits"] = "of the last token"
    return [
        BenchFigure(
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


def decoding(models: Models, size: InputSize, new_tokens: int, rounds: Rounds) -> list[BenchFigure]:
    """Time token-by-token decoding with a cache, after a prompt of ``size``."""
    ready = {name: after_prompt(model, size, new_tokens, _device(model)) for name, model in models.items()}
    contenders = {name: decoding.contender() for name, decoding in ready.items()}
    examined = {
        name: _examined(contender, models[name], held=ready[name].cache_bytes())
        for name, contender in contenders.items()
    }
    settings = {"batch_size": size.batch_size, "prompt_tokens": size.tokens, "new_tokens": new_tokens}
    times = rounds.run(f"decoding, batch {size.batch_size}", contenders)
    return [
        BenchFigure(
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


def _examined(contender: TurnTaker, model: PreTrainedModel, held: int = 0) -> dict[str, Any]:
    """Operations of a step, and peak memory. The operations of quantized layers cannot be counted.

    Memory is measured second, because an accelerator's libraries allocate their workspace in the first call and keep
    it.
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


# The forward pass of several models, timed in turns.

Inputs = Callable[["PreTrainedModel", torch.device], Mapping[str, Any]]
"""Function that makes the inputs of a model on a device."""


def forward_contender(model: PreTrainedModel, inputs: Inputs) -> TurnTaker:
    """A model's forward pass without gradients, in evaluation mode. Inputs are remade for each turn, untimed."""
    device = next(model.parameters()).device

    @contextmanager
    def turn() -> Iterator[Call]:
        given = inputs(model, device)
        with eval_mode(model), torch.no_grad():
            yield lambda: model(**given)

    return TurnTaker(turn=turn, device=device)


def call_latency(
    models: Mapping[str, PreTrainedModel], inputs: Inputs, *, repeats: int = 10, warmup: int = 2
) -> dict[str, float]:
    """Return median seconds per call of models measured in turns. The ratios are more reliable than the seconds.

    Args:
        models: by name; each stays on its device.
        inputs: makes the inputs for a model on its device; called before each timed call.
        repeats: timed calls of each model.
        warmup: untimed calls of each model before them.
    """
    contenders = {name: forward_contender(model, inputs) for name, model in models.items()}
    return {name: times.median for name, times in in_turns(contenders, repeats=repeats, warmup=warmup).items()}


# Decoding with a KV cache, token by token, timed in turns.


@dataclass(frozen=True)
class Decoding:
    """A model that has read a prompt, ready to decode.

    Attributes:
        model: model that decodes.
        cache: keys and values of the prompt; never changed.
        tokens: tokens to feed one by one, shape ``(batch, steps)``. They are random, so a mixture routes the sequences
            of a batch to different experts.
        further: additional arguments of every call.
    """

    model: PreTrainedModel
    cache: Any
    tokens: torch.Tensor
    further: dict[str, Any]

    @property
    def batch_size(self) -> int:
        """Number of sequences in the batch."""
        return self.tokens.shape[0]

    @property
    def steps(self) -> int:
        """Number of tokens decoded for each sequence."""
        return self.tokens.shape[1]

    def cache_bytes(self) -> int:
        """Bytes of the cache after the prompt."""
        return cache_bytes(self.cache)

    def contender(self) -> TurnTaker:
        """Run all steps after the prompt; times are per step."""

        @contextmanager
        def turn() -> Iterator[Call]:
            cache = copy.deepcopy(self.cache)
            with eval_mode(self.model), torch.no_grad():
                yield lambda: self.run(cache)

        return TurnTaker(turn=turn, device=self.tokens.device, steps=self.steps)

    def run(self, cache: Any) -> None:
        """Decode every step greedily. Chosen tokens are not fed back, so all models do the same work."""
        model: Any = self.model
        name = "decoder_input_ids" if model.config.is_encoder_decoder else "input_ids"
        for step in range(self.steps):
            given = {name: self.tokens[:, step : step + 1], "past_key_values": cache, "use_cache": True}
            output = model(**given, **self.further)
            cache = output.past_key_values
            output.logits[:, -1].argmax(-1)


@torch.no_grad()
def after_prompt(model: PreTrainedModel, size: InputSize, new_tokens: int, device: torch.device) -> Decoding:
    """Let a model read a prompt of ``size.tokens``, and prepare decoding.

    The prompt is read once and its cache is repeated for the batch, because decoding speed depends only on the length.
    If a model cannot repeat its cache, it reads the whole batch.
    """
    with eval_mode(model):
        tokens = random_ids(model.config, size, new_tokens, device)
        further = {} if model.config.is_encoder_decoder else last_logits(model)
        try:
            cache, encoded = _read(model, replace(size, batch_size=1), device)
            cache.batch_repeat_interleave(size.batch_size)
            encoded = None if encoded is None else encoded.repeat_interleave(size.batch_size, dim=0)
        except (AttributeError, NotImplementedError):
            cache, encoded = _read(model, size, device)
    if encoded is not None:
        from transformers.modeling_outputs import BaseModelOutput

        further["encoder_outputs"] = BaseModelOutput(last_hidden_state=encoded)
    return Decoding(model=model, cache=cache, tokens=tokens, further=further)


def _read(model: Any, size: InputSize, device: torch.device) -> tuple[Any, torch.Tensor | None]:
    """Return the cache after a prompt, and the encoder's output."""
    prompt = random_ids(model.config, size, size.tokens, device)
    if not model.config.is_encoder_decoder:
        return model(input_ids=prompt, use_cache=True, **last_logits(model)).past_key_values, None
    start = torch.full((size.batch_size, 1), model.config.decoder_start_token_id or 0, device=device)
    output = model(input_ids=prompt, decoder_input_ids=start, use_cache=True)
    return output.past_key_values, output.encoder_last_hidden_state


def cache_bytes(cache: Any) -> int:
    """Bytes of all tensors in a cache of transformers, for any kind of layer."""
    found: dict[int, int] = {}

    def look(value: Any, depth: int = 0) -> None:
        if isinstance(value, torch.Tensor):
            found[id(value)] = value.numel() * value.element_size()
        elif isinstance(value, (list, tuple)):
            for item in value:
                look(item, depth)
        elif isinstance(value, dict):
            for item in value.values():
                look(item, depth)
        elif hasattr(value, "__dict__") and depth < 3:  # a cache, a part of one, a layer
            look(vars(value), depth + 1)

    look(cache)
    return sum(found.values())
