"""Norms of a cut model, tuned by gradient descent towards the predictions of the model before the cut."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from loraprune.calibration.block_by_block import Calibration, inputs_of, token_sequences
from loraprune.calibration.progress import Progress
from loraprune.calibration.recomputing import recomputing
from loraprune.layers.unwrap import eval_mode, find_module, gradients_only
from loraprune.metrics.distillation_loss import summed_loss
from loraprune.metrics.divergence import held_back
from loraprune.processes.ranks import own_part, summed
from loraprune.record.pruning_course import NormsRecord

if TYPE_CHECKING:
    from torch import nn

    from loraprune.structure.dimensions import Structure

TOKENS_PER_STEP = 2048
_STEP_SIZE = 4e-2
"""Share of a norm's gain."""

_HELD_BACK = 8
"""One row of so many judges the result."""

_MOST_JUDGES = 8
_WARM_UP = 4
_BETAS = (0.9, 0.95)
_LARGEST_GRADIENT = 1.0
_MOST_ACTIVATIONS = 2**31
"""Bytes of a row's activations above which they are computed again in the backward pass."""

_ACTIVATIONS = 34
"""Numbers that one block keeps for its backward pass, per token and hidden unit (Korthikanti et al., 2205.05198)."""


@dataclass(frozen=True, kw_only=True)
class _Followed:
    """A sequence, and what the head of the model received for it before the cut.

    Attributes:
        ids: token ids, shape ``(tokens,)``.
        hidden: hidden states, shape ``(tokens, hidden)``.
    """

    ids: torch.Tensor
    hidden: torch.Tensor


def norm_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the weights and biases of all normalization layers, by name."""
    return {
        f"{name}.{key}": parameter
        for name, module in _norms(model)
        for key, parameter in module.named_parameters(recurse=False)
    }


def _norms(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for name, module in model.named_modules():
        own = list(module.parameters(recurse=False))
        if "norm" in type(module).__name__.lower() and own and all(parameter.dim() == 1 for parameter in own):
            yield name, module


@torch.no_grad()
def _gain(module: nn.Module) -> float:
    """Root mean square of a norm's output, for an input whose mean is 0 and whose variance is 1.

    Unlike the weight itself, it is the same for norms that multiply by ``1 + weight``.
    """
    weight = next(module.parameters(recurse=False))
    x = torch.ones_like(weight)
    x[1::2] = -1
    output: torch.Tensor = module(x[None, None])
    return float(output.float().square().mean().sqrt())


def why_norms_stay(model: Any, structure: Structure, calibration: Calibration) -> str | None:
    """Say why the norms of a model cannot be tuned, as the end of a sentence; None if they can."""
    if structure.of_kind("hidden"):
        return "the hidden size is cut, so that predictions cannot be compared at the head"
    if not token_sequences(structure, calibration):
        return "the calibration data are not token sequences of a decoder"
    if getattr(model, "get_output_embeddings", lambda: None)() is None:
        return "the model has no head that predicts tokens"
    return None if norm_parameters(model) else "the model has no norms with weights"


class NormTuning:
    """Tunes norms in two parts: stores what the model predicts before the cut, and follows it after the cut.

    Memory: the hidden states that enter the head, for the rows that are used, in the model's dtype. The activations
    of one row during a step.

    Args:
        model: causal language model before the cut.
        calibration: token ids, 1-D tensors. As many rows are used as the steps need, drawn without replacement.
        steps: optimizer steps of about :data:`TOKENS_PER_STEP` tokens.
        seed: seed of the order of the rows.

    Source: Norm Tweaking (arXiv 2309.02784), which tunes the norms of quantized models layer by layer. Here the loss is
    the divergence of the predictions.
    """

    def __init__(self, model: nn.Module, calibration: Sequence[torch.Tensor], *, steps: int, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(calibration), generator=generator).tolist()
        tuned, judges = held_back([calibration[index] for index in order], _HELD_BACK)
        self._steps = list(_batches(tuned, steps))
        used = {number for step in self._steps for number in step}
        self._rows = {number: _row(model, tuned[number]) for number in sorted(used)}
        self._judges = [_row(model, ids) for ids in judges[:_MOST_JUDGES]]

    def tune_(
        self, model: nn.Module, structure: Structure, progress: Progress = lambda done, total: None
    ) -> NormsRecord:
        """Tune the norms of the cut model in place; they stay as they were if that does not help.

        Help is measured as the divergence on rows that were held back.

        Args:
            model: the model after the cut.
            structure: structure of the model before the cut.
            progress: function that receives the finished and all steps.
        """
        parameters = list(norm_parameters(model).values())
        gains = [_gain(module) for _, module in _norms(model) for _ in module.parameters(recurse=False)]
        first = [parameter.detach().clone() for parameter in parameters]
        with self._ready(model, structure, parameters):
            before = self._judged(model)
            progress(0, len(self._steps))
            self._descend_(model, parameters, gains, progress)
            after = self._judged(model)
        if after < before:
            return NormsRecord(before=before, after=after, steps=len(self._steps))
        for parameter, value in zip(parameters, first, strict=True):
            parameter.data.copy_(value)
        return NormsRecord(before=before, after=before, steps=0)

    def _descend_(
        self, model: nn.Module, parameters: Sequence[nn.Parameter], gains: Sequence[float], progress: Progress
    ) -> None:
        """Take all steps, with weights and moments in 32 bits."""
        masters = [parameter.detach().float().clone().requires_grad_() for parameter in parameters]
        optimizer = torch.optim.AdamW([{"params": [master]} for master in masters], betas=_BETAS, weight_decay=0.0)
        for number, rows in enumerate(self._steps):
            for group, gain in zip(optimizer.param_groups, gains, strict=True):
                group["lr"] = _STEP_SIZE * gain * _schedule(number, len(self._steps))
            tokens = sum(len(self._rows[row].ids) for row in rows)
            for row in rows[own_part(len(rows))]:
                (_divergence(model, self._rows[row]) / tokens).backward()
            for master, parameter in zip(masters, parameters, strict=True):
                gradient = torch.zeros_like(master) if parameter.grad is None else parameter.grad.float()
                master.grad = summed(gradient)
                parameter.grad = None
            torch.nn.utils.clip_grad_norm_(masters, _LARGEST_GRADIENT)
            optimizer.step()
            for master, parameter in zip(masters, parameters, strict=True):
                parameter.data.copy_(master.detach())
            progress(number + 1, len(self._steps))

    @torch.no_grad()
    def _judged(self, model: nn.Module) -> float:
        """Divergence in nats per token on the rows that were held back; infinite if it is NaN."""
        mine = self._judges[own_part(len(self._judges))]
        found = summed(torch.tensor(sum(float(_divergence(model, row)) for row in mine), dtype=torch.float64))
        return math.inf if found.isnan() else float(found) / sum(len(row.ids) for row in self._judges)

    @contextmanager
    def _ready(self, model: nn.Module, structure: Structure, parameters: Sequence[nn.Parameter]) -> Iterator[None]:
        """Prepare for backward passes; activations are computed again if those of one row are too large to keep."""
        longest = max(len(row.ids) for row in self._rows.values())
        itemsize = next(iter(self._rows.values())).hidden.itemsize
        size = _ACTIVATIONS * longest * structure.hidden_size * len(structure.blocks) * itemsize
        found = (find_module(model, name) for name in structure.blocks)  # whole blocks may be cut
        blocks = [block for block in found if block is not None]
        with (
            eval_mode(model),
            torch.enable_grad(),
            gradients_only(model, parameters),
            recomputing(blocks if size > _MOST_ACTIVATIONS else ()),
        ):
            yield


def _batches(rows: Sequence[torch.Tensor], steps: int) -> Iterator[list[int]]:
    """Yield the numbers of the rows of each step: all rows in turn, as often as needed."""
    number = 0
    for _ in range(steps):
        batch: list[int] = []
        tokens = 0
        while not batch or tokens + len(rows[number]) <= TOKENS_PER_STEP:
            batch.append(number)
            tokens += len(rows[number])
            number = (number + 1) % len(rows)
            if number in batch:
                break
        yield batch


def _schedule(step: int, steps: int) -> float:
    """Share of the learning rate: a short warm-up, then a cosine to zero."""
    return min(1.0, (step + 1) / _WARM_UP) * 0.5 * (1.0 + math.cos(math.pi * step / steps))


@torch.no_grad()
def _row(model: Any, ids: torch.Tensor) -> _Followed:
    """Run a model up to its head."""
    head = model.get_output_embeddings()
    name = next(name for name, module in model.named_modules() if module is head)
    with eval_mode(model):
        ((hidden,),) = inputs_of(model, name, [partial(model, input_ids=ids[None].to(model.device), use_cache=False)])
    return _Followed(ids=ids, hidden=hidden[0])


def _divergence(model: Any, row: _Followed) -> torch.Tensor:
    """``KL(before ‖ now)`` of a row in nats, summed over its tokens.

    The head receives the hidden states of both models in one run, so whatever follows it (a scale or a soft cap of the
    logits) is done to both.
    """

    def both(module: nn.Module, args: tuple[torch.Tensor, ...]) -> torch.Tensor:
        return torch.cat([args[0], row.hidden[None].to(args[0])])

    handle = model.get_output_embeddings().register_forward_pre_hook(both, prepend=True)
    try:
        logits = model(input_ids=row.ids[None].to(model.device), use_cache=False).logits
    finally:
        handle.remove()
    now, before = logits.split(1)
    labels = torch.zeros(now.shape[:2], dtype=torch.long, device=now.device)
    return summed_loss(now, before.detach(), labels, 1.0)
