"""Perplexity of a causal language model on a text, by token and by word, and bits per byte."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch

from loraprune.layers.unwrap import eval_mode
from loraprune.metrics.perplexity import LOGITS_PER_BATCH
from loraprune.metrics.windows import Windows
from loraprune.processes.shared_work import made_of_each

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from loraprune.calibration.progress import Progress

_TOKENS_PER_BATCH = {"cpu": 4096}
"""Tokens to begin with, by kind of device."""
TOKENS_PER_BATCH_ELSEWHERE = 16384
LARGEST_EXPONENT = 700.0


@dataclass(frozen=True, kw_only=True)
class TextPerplexity:
    """How well a model foretells a text.

    Attributes:
        perplexity: ``exp`` of the mean negative log-likelihood of a scored token.
        word_perplexity: ``exp`` of the summed one by the words that begin in the scored text. It compares models with
            different tokenizers, and so does
        bits_per_byte: the summed one in bits by the UTF-8 bytes of the scored text.
        num_tokens: tokens scored.
        num_words: words that begin in their text; ``num_bytes``: its bytes.
        num_segments: windows.
    """

    perplexity: float
    word_perplexity: float
    bits_per_byte: float
    num_tokens: int
    num_words: int
    num_bytes: int
    num_segments: int


def text_perplexity(
    model: PreTrainedModel,
    windows: Windows,
    *,
    batch_size: int | None = None,
    shared: bool = False,
    progress: Progress | None = None,
) -> TextPerplexity:
    """Measure a model on windows of a text.

    Likelihoods are computed in 32 bits and summed in 64, whatever the model's dtype; the batch size changes nothing
    but the last digits of the former.

    Args:
        model: on its device.
        windows: of the text.
        batch_size: windows in a batch; None begins with one that should fit and halves it until it does.
        shared: share the batches out among the processes of the run, all of which call this with the same windows.
        progress: told how many tokens are done.

    Raises:
        ValueError: there is no memory for a single window.
    """
    total = math.fsum(_losses(model, windows, batch_size, shared, progress or (lambda done, of: None)))
    count = windows.num_scored
    return TextPerplexity(
        perplexity=_exp(total / count),
        word_perplexity=_exp(total / windows.num_words) if windows.num_words else math.inf,
        bits_per_byte=total / math.log(2) / windows.num_bytes if windows.num_bytes else math.inf,
        num_tokens=count,
        num_words=windows.num_words,
        num_bytes=windows.num_bytes,
        num_segments=len(windows.ids_WL),
    )


def _exp(value: float) -> float:
    return math.exp(value) if value < LARGEST_EXPONENT else math.inf if not math.isnan(value) else math.nan


def _losses(model: Any, windows: Windows, batch_size: int | None, shared: bool, progress: Progress) -> list[float]:
    """The negative log-likelihood of the scored tokens of each window, in nats."""
    count, length = len(windows.ids_WL), windows.length
    size = batch_size or starting_batch_size(model, length)
    batches = [range(start, min(start + size, count)) for start in range(0, count, size)]
    progress(0, count * length)
    of_batch = _halved_to_fit(model, windows, batch_size, size)
    with eval_mode(model), torch.no_grad():
        found = made_of_each(
            len(batches),
            lambda number: of_batch(batches[number]),
            shared=shared,
            sizes=[len(batch) * length for batch in batches],
            progress=progress,
        )
    return list(chain.from_iterable(found))


def _halved_to_fit(model: Any, windows: Windows, batch_size: int | None, size: int) -> Callable[[range], list[float]]:
    """Measures batches; where memory does not suffice for one, it and those after it are halved until it does."""
    from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size

    def measure(batch: range) -> list[float]:
        nonlocal size
        found: list[float] = []
        while len(found) < len(batch):
            try:
                found += _batch_losses(model, windows, batch[len(found) :][:size])
                continue
            except Exception as error:
                if not should_reduce_batch_size(error):
                    raise
                if size == 1 or batch_size is not None:
                    raise _no_memory(batch_size, windows.length) from error
            # Out of reach of the error, which holds on to the tensors of the failed batch.
            size //= 2
            clear_device_cache(garbage_collection=True)
        return found

    return measure


def _no_memory(batch_size: int | None, length: int) -> ValueError:
    many = "one segment" if batch_size is None else f"{batch_size} segments (--batch-size)"
    return ValueError(
        f"There is no memory for {many} of {length:,} tokens. Take shorter ones with --max-length, or 16 bits with "
        "--dtype bfloat16."
    )


def starting_batch_size(model: Any, length: int) -> int:
    """Windows in a batch to begin with: by the tokens, and by the logits that they give."""
    device = next(model.parameters()).device
    tokens = _TOKENS_PER_BATCH.get(device.type, TOKENS_PER_BATCH_ELSEWHERE)
    vocabulary = model.get_output_embeddings()
    width = vocabulary.weight.shape[0] if vocabulary is not None and hasattr(vocabulary, "weight") else 32000
    return max(1, min(tokens, LOGITS_PER_BATCH // width) // length)


def _batch_losses(model: Any, windows: Windows, batch: range) -> list[float]:
    ids = windows.ids_WL[batch.start : batch.stop].to(next(model.parameters()).device)
    logits = model(input_ids=ids, use_cache=False).logits
    found = []
    for row, first in enumerate(windows.first_scored[batch.start : batch.stop]):
        # One window at a time: logits in 32 bits take more memory than all else.
        losses = torch.nn.functional.cross_entropy(
            logits[row, first - 1 : -1].float(), ids[row, first:], reduction="none"
        )
        found.append(losses.cpu().double().sum().item())  # not every accelerator has 64 bits
    return found
