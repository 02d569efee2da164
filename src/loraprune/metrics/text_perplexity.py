"""Perplexity of a causal language model on a text, per token and per word, and bits per byte."""

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
"""Initial number of tokens per batch, by kind of device."""
TOKENS_PER_BATCH_ELSEWHERE = 16384
LARGEST_EXPONENT = 700.0


@dataclass(frozen=True, kw_only=True)
class TextPerplexity:
    """How well a model predicts a text.

    Attributes:
        perplexity: ``exp`` of the mean negative log-likelihood of a scored token.
        word_perplexity: ``exp`` of the summed negative log-likelihood per word that begins in the scored text. It
            compares models with different tokenizers.
        bits_per_byte: summed negative log-likelihood in bits per UTF-8 byte of the scored text. It also compares models
            with different tokenizers.
        num_tokens: scored tokens.
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

    Likelihoods are computed in 32 bits and summed in 64, for any dtype of the model. The batch size affects only the
    last digits of the likelihoods.

    Args:
        model: on its device.
        windows: windows of the text.
        batch_size: windows per batch; None starts with an estimate and halves it until a batch fits.
        shared: divide the batches among the processes of the run. All of them must call this with the same windows.
        progress: called with the number of finished tokens.

    Raises:
        ValueError: not even one window fits into memory.
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
    """Negative log-likelihood of the scored tokens of each window, in nats."""
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
    """Measures batches. If memory runs out, this batch and all later ones are halved until they fit."""
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
            # Outside the except block, because the error keeps the tensors of the failed batch alive.
            size //= 2
            clear_device_cache(garbage_collection=True)
        return found

    return measure


def _no_memory(batch_size: int | None, length: int) -> ValueError:
    many = "one segment" if batch_size is None else f"{batch_size} segments (--batch-size)"
    return ValueError(
        f"There is not enough memory for {many} of {length:,} tokens. Use shorter ones with --max-length, or 16 bits "
        "with --dtype bfloat16."
    )


def starting_batch_size(model: Any, length: int) -> int:
    """Initial number of windows per batch, limited by the tokens and by their logits."""
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
        # One window at a time, because logits in 32 bits need more memory than everything else.
        losses = torch.nn.functional.cross_entropy(
            logits[row, first - 1 : -1].float(), ids[row, first:], reduction="none"
        )
        found.append(losses.cpu().double().sum().item())  # not every accelerator supports 64 bits
    return found
