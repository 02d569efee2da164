"""A callback that lets several criteria score one training run without pruning."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from transformers import TrainerCallback

from loraprune.importance.moving_average import MovingAverage, Scores, averaged, updated
from loraprune.importance.whole_blocks import tell_micro_batches
from loraprune.processes.ranks import num_processes
from loraprune.pruning.errors import TrainingDivergedError
from loraprune.pruning.pruner import gradients_finite
from loraprune.structure.plan import Plan

if TYPE_CHECKING:
    from transformers import TrainerControl, TrainerState, TrainingArguments

    from loraprune.importance.criterion import Criterion
    from loraprune.structure.dimensions import Structure


class ListeningCallback(TrainerCallback):
    """Lets several criteria collect evidence from the same steps; each has its own moving average.

    Args:
        criteria: criteria by name.
        structure: structure of the model.
        decay: λ of the averages.
        bias_correction: correct the averages for their start at zero.

    Attributes:
        scores: scores by criterion; set at the end of training.
        skipped_steps: steps whose gradients were not finite; they give no evidence.
    """

    def __init__(
        self, criteria: Mapping[str, Criterion], structure: Structure, *, decay: float, bias_correction: bool
    ) -> None:
        self.scores: dict[str, Scores] = {}
        self.skipped_steps: list[int] = []
        self._criteria = dict(criteria)
        self._structure = structure
        self._decay = decay
        self._bias_correction = bias_correction
        self._averages = dict.fromkeys(self._criteria, MovingAverage())
        self._plan = Plan.full(structure)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start to collect evidence."""
        for criterion in self._criteria.values():
            # The count of all processes: evidence is squared or made positive after the sum over them.
            tell_micro_batches(criterion, args.gradient_accumulation_steps * num_processes())
            criterion.attach(kwargs["model"], self._structure)

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Collect the evidence of the step; skip a step whose gradients are not finite."""
        usable = gradients_finite(kwargs["model"])
        for name, criterion in self._criteria.items():
            if not criterion.every_step:
                continue
            # Always read, so that the evidence of a skipped step does not get into the next one.
            scores = criterion.scores(self._plan)
            if usable and scores is not None and all(bool(torch.isfinite(value).all()) for value in scores.values()):
                self._averages[name] = updated(self._averages[name], scores, self._decay)
        if not usable:
            step = state.global_step + 1
            self.skipped_steps.append(step)
            kwargs["optimizer"].zero_grad(set_to_none=True)
            warnings.warn(f"Step {step}: NaN or Inf in the gradients; the step is skipped.", stacklevel=2)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Read the scores and remove all hooks."""
        for name, criterion in self._criteria.items():
            scores = self._final_scores(name, criterion)
            if scores is not None:
                self.scores[name] = {dimension: value.float().cpu() for dimension, value in scores.items()}
        self.detach()
        missing = [name for name in self._criteria if name not in self.scores]
        if missing:
            raise TrainingDivergedError(
                f"The criterion {missing[0]!r} had no finite score in {state.global_step} steps. "
                "Try a lower learning rate, and check the data."
            )

    def _final_scores(self, name: str, criterion: Criterion) -> Scores | None:
        if not criterion.every_step:
            return criterion.scores(self._plan)
        return averaged(self._averages[name], self._decay, self._bias_correction) or None

    def detach(self) -> None:
        """Remove all hooks, at the end of training or after a stop."""
        for criterion in self._criteria.values():
            criterion.detach()
