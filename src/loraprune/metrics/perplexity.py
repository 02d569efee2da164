"""Perplexity of a causal language model on held-out sequences."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import send_to_device

from loraprune.calibration.block_by_block import equal_length_batches
from loraprune.data.encoding import text_and_segment_opening, tokenize
from loraprune.layers.unwrap import eval_mode
from loraprune.processes.shared_work import made_of_each

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

IGNORED = -100
_TOKENS_PER_BATCH = 4096
LOGITS_PER_BATCH = 1 << 27


@dataclass(frozen=True, kw_only=True)
class Perplexity:
    """Perplexity with its conditions.

    A perplexity is meaningless without its segment length. Published LLaMA-7B figures use 128, 2048 and 4096 tokens and
    are not comparable.

    Attributes:
        perplexity: ``exp`` of the mean negative log-likelihood of the predicted tokens.
        num_tokens: number of predicted tokens, which excludes the first of each sequence.
        segment_length: tokens of the longest sequence; each sequence starts without context.
        bits_per_byte: the same likelihood in bits per byte of UTF-8 text, or None if the number of bytes is unknown. It
            compares models with different tokenizers.
        num_not_finite: sequences, out of ``num_segments``, whose loss was not finite; both are None if all were finite.
    """

    perplexity: float
    num_tokens: int
    segment_length: int
    bits_per_byte: float | None = None
    num_not_finite: int | None = None
    num_segments: int | None = None


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """Sequences to measure on.

    Attributes:
        sequences: pairs of token ids and labels, 1-D int64 tensors of one length; a label of -100 is ignored.
        num_bytes: bytes of UTF-8 text in the sequences, if known.
    """

    sequences: Sequence[tuple[torch.Tensor, torch.Tensor]]
    num_bytes: int | None = None

    def __len__(self) -> int:
        return len(self.sequences)


def pack_text(
    texts: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    segment_length: int,
    max_segments: int | None = None,
    *,
    bos: str = "auto",
) -> HeldOut:
    """Join texts, each followed by the end-of-text token, and split them into segments; a short rest is dropped.

    ``bos``, one of :data:`~loraprune.data.encoding.BOS_CHOICES`, says what starts with the beginning-of-sequence token.
    At the start of a segment, this token is not scored.

    Raises:
        ValueError: all texts together are shorter than one segment.
    """
    end = [tokenizer.eos_token_id] if tokenizer.eos_token_id is not None else []
    before, opening = text_and_segment_opening(tokenizer, bos)
    body = segment_length - len(opening)
    needed = max_segments * body if max_segments else None
    token_ids: list[int] = []
    num_bytes = 0
    for text in texts:
        token_ids += before + tokenize(tokenizer, [text])[0] + end
        num_bytes += len(text.encode("utf-8"))
        if needed and len(token_ids) >= needed:
            break
    num_segments = len(token_ids) // body if body > 0 else 0
    if max_segments:
        num_segments = min(num_segments, max_segments)
    if num_segments == 0:
        raise ValueError(
            f"The text has {len(token_ids)} tokens, less than one segment of {segment_length}. "
            "Give more text or a shorter segment length."
        )
    used = num_segments * body
    texts_SB = torch.tensor(token_ids[:used]).view(num_segments, body)
    ids, ignored = (torch.tensor(tokens, dtype=torch.int64) for tokens in (opening, [IGNORED] * len(opening)))
    return HeldOut(
        sequences=[(torch.cat([ids, text]), torch.cat([ignored, text])) for text in texts_SB],
        num_bytes=round(num_bytes * used / len(token_ids)),
    )


@torch.no_grad()
def perplexity(model: PreTrainedModel, held_out: HeldOut, *, shared: bool = False) -> Perplexity:
    """Measure the perplexity of a model. Likelihoods are computed in 32 bits for any dtype of the model.

    Args:
        model: on its device.
        held_out: sequences.
        shared: divide the batches among the processes of the run. All of them must call this with the same sequences.

    Raises:
        ValueError: there is no token to predict.
    """
    device = next(model.parameters()).device
    tokens = min(_TOKENS_PER_BATCH, LOGITS_PER_BATCH // model.config.vocab_size)
    batches = equal_length_batches([torch.stack(pair, -1) for pair in held_out.sequences], tokens)

    def of_batch(number: int) -> tuple[float, int, int]:
        """Loss, predicted tokens, and number of sequences whose loss is not finite."""
        ids, labels = batches[number].unbind(-1)
        targets = labels[:, 1:].to(device)
        logits = model(input_ids=ids.to(device), use_cache=False).logits[:, :-1]
        loss = torch.nn.functional.cross_entropy(
            logits.float().flatten(0, 1), targets.flatten(), reduction="sum", ignore_index=IGNORED
        ).item()
        return loss, int((targets != IGNORED).sum()), 0 if math.isfinite(loss) else _num_not_finite(logits, targets)

    with eval_mode(model):
        found = made_of_each(len(batches), of_batch, shared=shared)
    num_tokens, lost = sum(tokens for _, tokens, _ in found), sum(lost for _, _, lost in found)
    if num_tokens == 0:
        raise ValueError("The held-out data has no token to predict.")
    mean = math.fsum(loss for loss, _, _ in found) / num_tokens
    bits_per_byte = None
    if held_out.num_bytes:
        all_tokens = sum(int((labels != IGNORED).sum()) for _, labels in held_out.sequences)
        bits_per_byte = mean * all_tokens / held_out.num_bytes / math.log(2)
    return Perplexity(
        perplexity=math.exp(mean) if mean < 700.0 or math.isnan(mean) else math.inf,
        num_tokens=num_tokens,
        segment_length=max(len(ids) for ids, _ in held_out.sequences),
        bits_per_byte=bits_per_byte,
        num_not_finite=lost or None,
        num_segments=len(held_out) if lost else None,
    )


def _num_not_finite(logits: torch.Tensor, targets: torch.Tensor) -> int:
    """Number of sequences whose loss is not finite."""
    losses = torch.nn.functional.cross_entropy(
        logits.float().transpose(1, 2), targets, reduction="none", ignore_index=IGNORED
    )
    return int((~losses.sum(-1).isfinite()).sum())


# Held-out rows as batches of model inputs.

Collator = Callable[[list[Any]], dict[str, Any]]
"""Function that makes a batch of rows, like a Trainer's ``data_collator``."""

ROWS_PER_BATCH = 32


@dataclass(frozen=True, kw_only=True)
class HeldOutRows:
    """Rows to measure on, with their collator."""

    rows: Dataset
    collator: Collator

    def __len__(self) -> int:
        return len(self.rows)

    def parts(self, count: int | None = None) -> list[range]:
        """Row indices of each batch, in order; if ``count`` is given, only of the first ``count`` rows."""
        total = len(self) if count is None else min(count, len(self))
        return [range(start, min(start + ROWS_PER_BATCH, total)) for start in range(0, total, ROWS_PER_BATCH)]

    def batch(self, numbers: range) -> dict[str, Any]:
        """Return the batch of some rows."""
        return self.collator([self.rows[number] for number in numbers])


def on_device(batch: Mapping[str, Any], device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """Move a batch to a device. Floating-point values (pixels) get the dtype of the model's weights."""
    cast = {
        name: value.to(dtype) if isinstance(value, torch.Tensor) and value.is_floating_point() else value
        for name, value in batch.items()
    }
    moved: dict[str, Any] = send_to_device(cast, device)
    return moved
