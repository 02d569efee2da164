"""Decoding with a cache of keys and values: one token after another, timed in turns."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from loraprune.layers.inference import inference_mode
from loraprune.measure.benchmark.random_inputs import InputSize, last_logits, random_ids
from loraprune.measure.benchmark.timing import Call, Contender

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Decoding:
    """A model that has read a prompt, and what it goes on from.

    Attributes:
        model: that decodes.
        cache: keys and values of the prompt; never changed.
        tokens: that are fed one after another, shape ``(batch, steps)``: random, so that a mixture routes the
            sequences of a batch to experts of their own.
        further: arguments of every call.
    """

    model: PreTrainedModel
    cache: Any
    tokens: torch.Tensor
    further: dict[str, Any]

    @property
    def batch_size(self) -> int:
        """Sequences that are decoded at once."""
        return self.tokens.shape[0]

    @property
    def steps(self) -> int:
        """Tokens that each of them gets."""
        return self.tokens.shape[1]

    def cache_bytes(self) -> int:
        """Bytes of the cache after the prompt."""
        return cache_bytes(self.cache)

    def contender(self) -> Contender:
        """A run of all steps from the prompt on; times are those of one step."""

        @contextmanager
        def turn() -> Iterator[Call]:
            cache = copy.deepcopy(self.cache)
            with inference_mode(self.model), torch.no_grad():
                yield lambda: self.run(cache)

        return Contender(turn=turn, device=self.tokens.device, steps=self.steps)

    def run(self, cache: Any) -> None:
        """Decode every step greedily; what was chosen is not fed back, so that all models do the same work."""
        model: Any = self.model
        name = "decoder_input_ids" if model.config.is_encoder_decoder else "input_ids"
        for step in range(self.steps):
            given = {name: self.tokens[:, step : step + 1], "past_key_values": cache, "use_cache": True}
            output = model(**given, **self.further)
            cache = output.past_key_values
            output.logits[:, -1].argmax(-1)


@torch.no_grad()
def after_prompt(model: PreTrainedModel, size: InputSize, new_tokens: int, device: torch.device) -> Decoding:
    """Let a model read a prompt of ``size.tokens``, and make ready to decode.

    The prompt is read once and its cache repeated for the batch: how fast decoding is depends on the length alone.
    Where a model cannot repeat its cache, it reads the whole batch.
    """
    with inference_mode(model):
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
    """The cache after a prompt, and what an encoder made of it."""
    prompt = random_ids(model.config, size, size.tokens, device)
    if not model.config.is_encoder_decoder:
        return model(input_ids=prompt, use_cache=True, **last_logits(model)).past_key_values, None
    start = torch.full((size.batch_size, 1), model.config.decoder_start_token_id or 0, device=device)
    output = model(input_ids=prompt, decoder_input_ids=start, use_cache=True)
    return output.past_key_values, output.encoder_last_hidden_state


def cache_bytes(cache: Any) -> int:
    """Bytes of all tensors of a cache of transformers, whatever its layers keep."""
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
