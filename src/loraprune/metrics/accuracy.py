"""Accuracy of classifiers, and quality of encoder–decoder models on held-out targets."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from loraprune.layers.unwrap import eval_mode
from loraprune.metrics.perplexity import IGNORED, HeldOutRows, on_device
from loraprune.processes.shared_work import made_of_each

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from loraprune.calibration.progress import Progress


@dataclass(frozen=True, kw_only=True)
class TargetQuality:
    """Measures of an encoder–decoder model.

    Attributes:
        loss: mean negative log-likelihood of the targets' tokens, in nats.
        perplexity: ``exp`` of the loss.
        num_tokens: number of target tokens.
        exact_match: share of the targets that greedy decoding reproduces exactly.
        num_generated: number of targets that were generated.
    """

    loss: float
    perplexity: float
    num_tokens: int
    exact_match: float
    num_generated: int


@torch.no_grad()
def target_quality(
    model: PreTrainedModel,
    held_out: HeldOutRows,
    tokenizer: PreTrainedTokenizerBase,
    *,
    generated: int,
    shared: bool = False,
    progress: Progress | None = None,
) -> TargetQuality:
    """Measure the likelihoods of all held-out targets, and generate the first ``generated`` of them.

    Args:
        model: encoder–decoder.
        held_out: rows, at least one.
        tokenizer: tokenizer of the model.
        generated: number of targets to generate.
        shared: divide the batches among the processes of the run. All of them must call this with the same rows.
        progress: called with the number of rows; a generated row counts twice.
    """
    device = next(model.parameters()).device
    read, written = held_out.parts(), held_out.parts(generated)
    batches = [*read, *written]

    def of_batch(number: int) -> tuple[float, int] | list[bool]:
        """Loss and tokens of a batch of likelihoods, or, for a generated batch, whether each target matches."""
        inputs = on_device(held_out.batch(batches[number]), device, model.dtype)
        if number >= len(read):
            return _matches(model, inputs, tokenizer)
        logits, labels = model(**inputs).logits.float(), inputs["labels"]
        loss = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), labels.flatten(), reduction="sum", ignore_index=IGNORED
        )
        return loss.item(), int((labels != IGNORED).sum())

    sizes = [len(batch) for batch in batches]
    with eval_mode(model):
        found: list[Any] = made_of_each(len(batches), of_batch, shared=shared, sizes=sizes, progress=progress)
    count = sum(tokens for _, tokens in found[: len(read)])
    loss = math.fsum(nll for nll, _ in found[: len(read)]) / count
    matches = [match for batch in found[len(read) :] for match in batch]
    return TargetQuality(
        loss=loss,
        perplexity=math.exp(loss) if loss < 700.0 else math.inf,
        num_tokens=count,
        exact_match=sum(matches) / len(matches),
        num_generated=len(matches),
    )


def _matches(model: Any, inputs: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> list[bool]:
    """Whether greedy decoding reproduces each target of a batch, limited to the length of the longest target."""
    labels = inputs["labels"]
    output = model.generate(
        input_ids=inputs["input_ids"],
        attention_mask=inputs["attention_mask"],
        max_new_tokens=labels.shape[1],
        do_sample=False,
        num_beams=1,
    )
    targets = [row[row != IGNORED] for row in labels]
    written, wanted = (
        [str(tokenizer.decode(ids, skip_special_tokens=True)).strip() for ids in rows] for rows in (output, targets)
    )
    return [a == b for a, b in zip(written, wanted, strict=True)]


# Accuracy and loss of a classifier on held-out examples.


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """Measures of a classifier.

    Attributes:
        accuracy: share of the examples whose label has the largest logit.
        loss: mean cross-entropy in nats.
        num_examples: number of examples.
    """

    accuracy: float
    loss: float
    num_examples: int


@torch.no_grad()
def accuracy(
    model: PreTrainedModel, held_out: HeldOutRows, *, shared: bool = False, progress: Progress | None = None
) -> Accuracy:
    """Measure a classifier. Losses are computed in 32 bits for any dtype of the model.

    Args:
        model: on its device.
        held_out: rows, at least one.
        shared: divide the batches among the processes of the run. All of them must call this with the same rows.
        progress: called with the number of rows.
    """
    device, parts = next(model.parameters()).device, held_out.parts()

    def of_batch(number: int) -> tuple[int, float, int]:
        """Number of correct answers, summed loss, and number of examples."""
        inputs = on_device(held_out.batch(parts[number]), device, model.dtype)
        labels = inputs.pop("labels")
        logits = model(**inputs).logits.float()
        loss = torch.nn.functional.cross_entropy(logits, labels, reduction="sum").item()
        return int((logits.argmax(-1) == labels).sum()), loss, len(labels)

    sizes = [len(part) for part in parts]
    with eval_mode(model):
        found = made_of_each(len(parts), of_batch, shared=shared, sizes=sizes, progress=progress)
    right, count = sum(hits for hits, _, _ in found), sum(examples for _, _, examples in found)
    return Accuracy(accuracy=right / count, loss=math.fsum(nll for _, nll, _ in found) / count, num_examples=count)
