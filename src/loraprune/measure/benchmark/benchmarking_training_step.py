"""A step of LoRA tuning without a Trainer: forward and backward passes, a criterion's evidence, the update."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from loraprune.measure.benchmark.memory import allocated_bytes, peak_bytes, state_bytes, weight_bytes
from loraprune.measure.benchmark.timing import Call, Contender
from loraprune.pruning.callback import gradients_finite
from loraprune.pruning.config import PruningConfig
from loraprune.pruning.state import PruningRun
from loraprune.surgery.masking import Masks

if TYPE_CHECKING:
    from loraprune.structure.dimensions import Structure
    from loraprune.structure.plan import Plan

FAR = 10**6
"""Steps of the run that a criterion is told of: no cut falls due while it is timed."""
LEARNING_RATE = 1e-4
MAX_NORM = 1.0
"""Norm that gradients are clipped to, as the Trainer does by default."""


@dataclass(frozen=True)
class Work:
    """What a step computes.

    Attributes:
        batch: arguments of a forward pass that gives a loss.
        accumulation: passes in a step.
        autocast: dtype to compute in, or None for that of the weights.
    """

    batch: Mapping[str, Any]
    accumulation: int = 1
    autocast: torch.dtype | None = None


class TrainingStep:
    """Steps of a model with LoRA, perhaps with a criterion that listens or with masks; several can share a model.

    Args:
        model: with LoRA.
        work: of a step.
        criterion: that listens, or None.
        masks: structure and plan to be masked by, or None.
    """

    def __init__(
        self,
        model: Any,
        work: Work,
        *,
        criterion: PruningConfig | None = None,
        masks: tuple[Structure, Plan] | None = None,
    ) -> None:
        self.model = model.train()
        self.work = work
        self.device: torch.device = next(model.parameters()).device
        self._masks = masks
        self.optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=LEARNING_RATE)
        self.run: PruningRun | None = None
        if criterion is not None:
            self.run = PruningRun.of(model, criterion)
            self.run.micro_batches = work.accumulation

    @contextmanager
    def turn(self) -> Iterator[Call]:
        """Attach what listens or masks; gives the step, and leaves the model as it was."""
        masks = None
        if self.run is not None:
            self.run.begin(self.model, FAR)
        if self._masks is not None:
            masks = Masks(self.model, *self._masks)
        try:
            yield self.step
        finally:
            if self.run is not None:
                self.run.end()
            if masks is not None:
                masks.remove()

    def contender(self) -> Contender:
        """The step as one of several that take turns."""
        return Contender(turn=self.turn, device=self.device)

    def step(self) -> None:
        """All passes, and the update."""
        self.passes()
        self.update()

    def passes(self) -> None:
        """Forward and backward passes."""
        autocast = self.work.autocast
        for _ in range(self.work.accumulation):
            with torch.autocast(self.device.type, autocast, enabled=autocast is not None):
                loss = self.model(**self.work.batch).loss / self.work.accumulation
            loss.backward()

    def update(self) -> None:
        """Take in the evidence, and change the adapter."""
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), MAX_NORM)
        if self.run is not None:  # plain tuning does not look for NaN
            self.run.observe(usable=gradients_finite(self.model))
        self.optimizer.step()
        self.optimizer.zero_grad()

    @property
    def reads_at_cuts(self) -> bool:
        """Whether the criterion's scores are read at cuts only, and not in every step."""
        return self.run is not None and not self.run.criterion.every_step

    def read_scores(self) -> None:
        """What a cut begins with where :attr:`reads_at_cuts`: scores from the evidence so far."""
        assert self.run is not None
        self.run.criterion.scores(self.run.plan)

    def peak_bytes(self) -> int:
        """Most bytes at once during a step, weights and optimizer included; one step must have been made before."""
        held = weight_bytes(self.model) + state_bytes(self.optimizer)
        before = allocated_bytes(self.device)
        with self.turn() as step:
            held += allocated_bytes(self.device) - before  # masks, and what a criterion keeps
            return peak_bytes(step, self.device, held=held)


def recompute_(model: Any) -> None:
    """Switch gradient checkpointing on for a model with LoRA."""
    model.enable_input_require_grads()
    model.get_base_model().gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})


def cut_at_random_(model: Any, ratio: float, **settings: Any) -> PruningRun:
    """Cut groups drawn at random, without a refit: for speed it does not matter which ones go.

    Args:
        model: with LoRA or without; changed.
        ratio: sparsity ratio.
        settings: of :class:`~loraprune.pruning.config.PruningConfig`.

    Returns:
        The run, which knows structure and plan.
    """
    config = PruningConfig(ratio=ratio, criterion="random", refit=False, cuts=1, **settings)
    run = PruningRun.of(model, config)
    run.begin(model, 1)
    run.cut_if_due(1)
    run.end()
    return run
