"""Scores of groups from gradients of the loss on calibration data, without training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import send_to_device

from loraprune.calibration.block_by_block import Calibration, equal_length_batches
from loraprune.calibration.progress import Progress
from loraprune.calibration.recomputing import recomputing
from loraprune.importance.configs import Fisher, Taylor
from loraprune.importance.criterion import Criterion, check_scores
from loraprune.importance.criterion_config import CriterionConfig, OwnCriterion
from loraprune.importance.moving_average import Scores
from loraprune.importance.taylor import base_gradients, taylor_scores
from loraprune.importance.whole_blocks import block_by_block, built_for, joined_scores
from loraprune.layers.unwrap import base_model, eval_mode, gradients_only
from loraprune.processes.ranks import averaged_gradient, each_alone, num_processes, own_part
from loraprune.processes.shared_work import together
from loraprune.structure.plan import Plan

if TYPE_CHECKING:
    from torch import nn

    from loraprune.structure.dimensions import Structure

TOKENS_PER_GRADIENT = 2048
"""Tokens in a batch with a backward pass, whose activations are in memory all at once."""


def _batches(calibration: Calibration) -> Iterator[dict[str, Any]]:
    """Yield batches of a model's inputs with labels."""
    sequences = [item for item in calibration if isinstance(item, torch.Tensor)]
    for batch in equal_length_batches(sequences, TOKENS_PER_GRADIENT):
        yield {"input_ids": batch, "labels": batch, "use_cache": False}
    yield from (dict(item) for item in calibration if not isinstance(item, torch.Tensor))


def _own(calibration: Calibration) -> Calibration:
    """Return this process's part of the calibration data: sequences of similar lengths, or batches."""
    sequences = sorted((item for item in calibration if isinstance(item, torch.Tensor)), key=len, reverse=True)
    ordered: Calibration = [*sequences, *(item for item in calibration if not isinstance(item, torch.Tensor))]
    return ordered[own_part(len(ordered))]


def _rows(batch: Mapping[str, Any]) -> int:
    return next(len(value) for value in batch.values() if isinstance(value, torch.Tensor))


@dataclass(frozen=True)
class _Losses:
    """Losses whose gradients are computed.

    Attributes:
        batches: batches of this process.
        sequences: number of sequences in all processes.
        progress: function called with finished and total batches.
    """

    batches: Sequence[Mapping[str, Any]]
    sequences: int
    progress: Progress

    def go_back_from_(self, model: Any, *, by_sequence: bool) -> None:
        """Run the backward pass of each sequence's loss (``by_sequence``), or of the mean over all sequences.

        Gradients are multiplied by the number of processes, as in a Trainer; the sum of the evidence divides by it.

        Raises:
            ValueError: the calibration data have no labels.
        """
        together(lambda: self._go_back_from_(model, 1 if by_sequence else self.sequences))

    def _go_back_from_(self, model: Any, divisor: int) -> None:
        device = next(model.parameters()).device
        self.progress(0, len(self.batches))
        for done, batch in enumerate(self.batches, 1):
            loss = model(**send_to_device(dict(batch), device)).loss
            if loss is None:
                raise ValueError(
                    "Scores from gradients need a loss, and the calibration data have no 'labels'. Add labels, or "
                    "choose a criterion without gradients, such as flap."
                )
            # The loss of a batch is a mean. With a criterion that reads activations only, it has no gradient.
            if loss.requires_grad:
                (loss * _rows(batch) * num_processes() / divisor).backward()
            self.progress(done, len(self.batches))


@contextmanager
def _recomputing(model: nn.Module, structure: Structure) -> Iterator[None]:
    """On an accelerator, recompute the activations of each block instead of keeping them."""
    if next(model.parameters()).device.type == "cpu":
        yield
        return
    with recomputing(model.get_submodule(name) for name in structure.blocks):
        yield


def gradient_scores(
    model: nn.Module,
    structure: Structure,
    plan: Plan,
    calibration: Calibration,
    config: CriterionConfig,
    progress: Progress = lambda done, total: None,
) -> Scores:
    """Score the current groups of a model by the loss on calibration data.

    Every sequence (or image) has the same weight: its loss is the mean over its tokens. If there are enough sequences,
    the processes of a run share them out. A user's own criterion sees all of them in each process.

    Args:
        model: model at ``plan``.
        structure: structure of the model before any pruning.
        plan: current groups of the model.
        calibration: token ids, or mappings of the model's inputs with labels.
        config: ``fisher`` (mean over sequences of the squared gradient of a gate on each group), ``taylor``
            (importance of the group's weights from their gradients; ``L`` is the mean loss), or a user's own.
        progress: called with finished and total batches.

    Raises:
        ValueError: the calibration data have no labels, or stacked experts do not support the form of ``taylor``.
        ArithmeticError: the scores have NaN or Inf.
    """
    base: Any = base_model(model)
    shared = len(calibration) >= num_processes() and not isinstance(config, OwnCriterion)
    make = _of_experts if isinstance(config, Taylor) and _has_experts(base, structure) else _listening
    with nullcontext() if shared else each_alone():
        sequences = sum(1 if isinstance(item, torch.Tensor) else _rows(item) for item in calibration)
        found = make(base, structure, plan, _Losses(list(_batches(_own(calibration))), sequences, progress), config)
    if not all(bool(torch.isfinite(values).all()) for values in found.values()):
        raise ArithmeticError(
            "The gradients on the calibration data contain NaN or Inf. Is the model sound in this dtype?"
        )
    return found


def _has_experts(base: Any, structure: Structure) -> bool:
    """Whether any pruned weights are in stacked experts, which hooks cannot reach."""
    if any(dimension.of_experts for dimension in structure):
        return True
    whole = "blocks" in structure.kinds
    return whole and any(dimension.of_experts for dimension in block_by_block(base, structure))


@contextmanager
def _backward_ready(base: Any, structure: Structure) -> Iterator[None]:
    """Put the model in eval mode with gradients enabled, but for no parameter."""
    with ExitStack() as stack:
        stack.enter_context(eval_mode(base))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(gradients_only(base, ()))
        stack.enter_context(_recomputing(base, structure))
        yield


def _listening(
    base: Any,
    structure: Structure,
    plan: Plan,
    losses: _Losses,
    config: CriterionConfig,
) -> Scores:
    """Score by a criterion that hooks into the backward passes."""
    criterion: Criterion = built_for(config, structure)
    own = isinstance(config, OwnCriterion)
    if not own:
        criterion.attach(base, structure)
    try:
        with _backward_ready(base, structure):
            if own:  # it may switch gradients of parameters on
                criterion.attach(base, structure)
            losses.go_back_from_(base, by_sequence=isinstance(config, Fisher))
            scores = criterion.scores(plan)
    finally:
        criterion.detach()
    if scores is None:
        raise ValueError(f"The criterion {config.name} has no scores after a pass over all calibration data.")
    if own:
        check_scores(config.name, structure, plan, scores)
    return scores


def _of_experts(
    base: Any,
    structure: Structure,
    plan: Plan,
    losses: _Losses,
    config: CriterionConfig,
) -> Scores:
    """Score by the gradients that autograd leaves in the weights, because hooks do not reach stacked experts."""
    assert isinstance(config, Taylor)
    if config.form not in ("squared", "first") or config.offload:
        raise ValueError(
            "For stacked experts, the criterion 'taylor' supports the forms squared and first, without offload_grads. "
            "Choose one of these, or the criterion 'fisher'."
        )
    if "blocks" in structure.kinds:
        # The weights of a block are those of all of its layers.
        alone = block_by_block(base, structure)
        return joined_scores(structure, _of_experts(base, alone, Plan.full(alone), losses, config))
    with _backward_ready(base, structure), base_gradients(base, structure):
        losses.go_back_from_(base, by_sequence=False)
        for weight in base.parameters():
            if weight.requires_grad and num_processes() > 1:
                weight.grad = averaged_gradient(torch.zeros_like(weight) if weight.grad is None else weight.grad)
        return taylor_scores(base, structure, plan, config.form, config.reduction)
