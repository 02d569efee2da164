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
    """Perplexity together with what it was measured on.

    A perplexity without its segment length says nothing: published LLaMA-7B figures exist at 128, 2048 and
    4096 tokens, and they do not compare.

    Attributes:
        perplexity: ``exp`` of the mean negative log-likelihood of the predicted tokens.
        num_tokens: tokens predicted; the first of a sequence is not.
        segment_length: tokens of the longest sequence; each sequence starts without context.
        bits_per_byte: the same likelihood in bits per byte of UTF-8 text, or None where the number of bytes is
            unknown. It compares models with different tokenizers.
        num_not_finite: of ``num_segments`` sequences, those whose loss was not finite; both are None where all were.
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
        sequences: pairs of token ids and labels, 1-D int64 tensors of one length; a label of -100 is not measured.
        num_bytes: bytes of UTF-8 text that the sequences stand for, where known.
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
    """Join texts, each closed by the end-of-text token, and cut them into segments; a short tail is dropped.

    What begins with the beginning-of-sequence token is said by ``bos``, one of
    :data:`~loraprune.data.encoding.BOS_CHOICES`; in front of a segment it is not measured.

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
    """Measure the perplexity of a model; likelihoods are computed in 32 bits whatever its dtype.

    Args:
        model: on its device.
        held_out: sequences.
        shared: share the batches out among the processes of the run, all of which call this with the same sequences.

    Raises:
        ValueError: no token is left to predict.
    """
    device = next(model.parameters()).device
    tokens = min(_TOKENS_PER_BATCH, LOGITS_PER_BATCH // model.config.vocab_size)
    batches = equal_length_batches([torch.stack(pair, -1) for pair in held_out.sequences], tokens)

    def of_batch(number: int) -> tuple[float, int, int]:
        """Loss, tokens predicted, and sequences whose loss is not finite."""
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
    """Sequences whose loss is not finite."""
    losses = torch.nn.functional.cross_entropy(
        logits.float().transpose(1, 2), targets, reduction="none", ignore_index=IGNORED
    )
    return int((~losses.sum(-1).isfinite()).sum())


# Held-out rows as the batches that a model is called with.

Collator = Callable[[list[Any]], dict[str, Any]]
"""Makes a batch of rows, as a Trainer's ``data_collator`` does."""

ROWS_PER_BATCH = 32


@dataclass(frozen=True, kw_only=True)
class HeldOutRows:
    """Rows to measure on, and what makes batches of them."""

    rows: Dataset
    collator: Collator

    def __len__(self) -> int:
        return len(self.rows)

    def parts(self, count: int | None = None) -> list[range]:
        """Numbers of the rows of each batch, in their order; of the first ``count`` rows alone where that is given."""
        total = len(self) if count is None else min(count, len(self))
        return [range(start, min(start + ROWS_PER_BATCH, total)) for start in range(0, total, ROWS_PER_BATCH)]

    def batch(self, numbers: range) -> dict[str, Any]:
        """The batch of some rows."""
        return self.collator([self.rows[number] for number in numbers])


def on_device(batch: Mapping[str, Any], device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """A batch on a device; numbers with a fraction (pixels) in the dtype of the model's weights."""
    cast = {
        name: value.to(dtype) if isinstance(value, torch.Tensor) and value.is_floating_point() else value
        for name, value in batch.items()
    }
    moved: dict[str, Any] = send_to_device(cast, device)
    return moved
