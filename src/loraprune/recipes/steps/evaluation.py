"""Evaluation during training: held-out loss, early stopping and the best adapter, both after the last cut."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback

from loraprune.layers.unwrap import base_model, eval_mode
from loraprune.processes.ranks import from_main
from loraprune.pruning.callback import PruningCallback
from loraprune.record.atomic import write_text
from loraprune.record.codec import decode, encode
from loraprune.record.report_data import EvaluationPoint

if TYPE_CHECKING:
    from torch import nn
    from transformers import Trainer, TrainerControl, TrainerState, TrainingArguments

    from loraprune.recipes.steps.prepared import PreparedRun, PreparedTraining
    from loraprune.tasks.options import RunOptions

EVALUATIONS_FILE = "loraprune_evaluations.json"
_BEST_FILE = "loraprune_best.safetensors"

logger = logging.getLogger("loraprune")


def check_evaluations(prepared: PreparedRun) -> None:
    """Check that a run with ``eval_steps`` has rows to evaluate on.

    Raises:
        ValueError: it has none.
    """
    if prepared.options.eval_steps is not None and prepared.held_out is None:
        raise ValueError(
            f"--eval-steps is {prepared.options.eval_steps}, and no rows are held out to evaluate on. Pass more data, "
            "--eval-data, or --eval-sequences above 0."
        )


class Evaluations(TrainerCallback):
    """Measures the model on held-out rows every ``eval_steps`` steps and after the last step.

    A Trainer's own evaluation would compare models before and after a cut, and could restore an adapter that no longer
    fits. It would also differ from the measurements before and after training.

    Args:
        prepared: the run.
        pruning: callback that cuts the model; it must be called before this one.
        shown: function called with the seconds and the result of each evaluation.

    Attributes:
        points: all evaluations, in order.
        stopped: whether training was stopped early.
    """

    def __init__(
        self, prepared: PreparedTraining, pruning: PruningCallback, shown: Callable[[float, str], None]
    ) -> None:
        self.points: list[EvaluationPoint] = []
        self.stopped = False
        self._prepared = prepared
        self._options: RunOptions = prepared.options
        self._pruning = pruning
        self._shown = shown
        self._best: dict[str, torch.Tensor] = {}
        self._trainer: Trainer | None = None
        if prepared.checkpoint is not None:
            self._restore(prepared.checkpoint)

    def attach_(self, trainer: Trainer) -> None:
        """Add this callback to a Trainer, whose checkpoints then hold the evaluations so far."""
        self._trainer = trainer
        trainer.add_callback(self)
        # First, because the state of pruning, written later, makes a checkpoint complete.
        trainer.callback_handler.callbacks.insert(0, _Remember(self))

    @property
    def comparable(self) -> list[EvaluationPoint]:
        """Evaluations after the last cut."""
        return [point for point in self.points if point.after_cuts]

    @property
    def best(self) -> EvaluationPoint | None:
        """Evaluation after the last cut with the lowest loss; the first one if several are equal."""
        finite = [point for point in self.comparable if math.isfinite(point.loss)]
        return min(finite, key=lambda point: point.loss) if finite else None

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Evaluate if it is due."""
        step, every = state.global_step, self._options.eval_steps
        if every is None or self._pruning.is_skipping or (step % every and step < state.max_steps):
            return
        if self.points and self.points[-1].step >= step:
            return
        due = control.should_log
        point = self._measured(kwargs["model"], step)
        control.should_log = due  # our log does not replace the training log that is due
        self.points.append(point)
        if self._options.load_best and self.best is point:
            self._best = _trained(kwargs["model"])
        if self._has_stalled() and step < state.max_steps:
            self.stopped = True
            control.should_training_stop = True
            control.should_save = args.save_strategy != "no"
            logger.info(
                "Stopping after step %d: no evaluation since step %d had a lower held-out loss", step, self._last_gain()
            )

    def _measured(self, model: nn.Module, step: int) -> EvaluationPoint:
        """Measure the model, log and show the result."""
        prepared, started = self._prepared, time.monotonic()
        assert prepared.held_out is not None
        with eval_mode(model), torch.no_grad():
            found = prepared.task.quality(base_model(model), prepared.held_out, prepared.processor)
        perplexity, accuracy = found.get("perplexity"), found.get("accuracy")
        measured = found["loss"] if "loss" in found else math.log(perplexity) if perplexity else math.nan
        # One process decides for all whether to stop and what is best.
        loss: float = from_main(lambda: float(measured))
        seconds = time.monotonic() - started
        point = EvaluationPoint(
            step=step,
            loss=loss,
            perplexity=perplexity,
            accuracy=accuracy,
            after_cuts=self._pruning.run is not None and not self._pruning.run.pending,
            seconds=seconds,
        )
        measures = {"loss": loss, "perplexity": perplexity, "accuracy": accuracy}
        assert self._trainer is not None
        with eval_mode(model):  # trl then keeps its averages for the next training log
            self._trainer.log({f"eval_{name}": value for name, value in measures.items() if value is not None})
        self._shown(seconds, _in_words(point))
        return point

    def _last_gain(self) -> int:
        return self.best.step if self.best is not None else self.comparable[0].step

    def _has_stalled(self) -> bool:
        """Return whether the last evaluations, as many as the patience, brought no improvement."""
        patience = self._options.early_stopping_patience
        if patience is None or not self.comparable:
            return False
        since = [point for point in self.comparable if point.step > self._last_gain()]
        return len(since) >= patience

    def take_best_(self, model: nn.Module) -> None:
        """Restore the adapter of the best evaluation, if ``load_best`` is set."""
        best = self.best
        if not self._options.load_best or best is None or not self._best:
            return
        present = dict(model.named_parameters())
        with torch.no_grad():
            for name, value in self._best.items():
                if name in present:
                    present[name].copy_(value)
        self.points = [replace(point, taken=True) if point is best else point for point in self.points]
        logger.info("Keeping the adapter of step %d, the best after the last cut (%s)", best.step, _in_words(best))

    # State in checkpoints.

    def save(self, folder: Path) -> None:
        """Write the evaluations so far and the best adapter into a checkpoint."""
        write_text(folder / EVALUATIONS_FILE, json.dumps({"points": encode(self.points), "stopped": self.stopped}))
        if self._best:
            save_file(self._best, folder / _BEST_FILE)

    def _restore(self, folder: Path) -> None:
        if not (folder / EVALUATIONS_FILE).is_file():
            return
        values = json.loads((folder / EVALUATIONS_FILE).read_text(encoding="utf-8"))
        self.points = [decode(EvaluationPoint, point) for point in values["points"]]
        self.stopped = bool(values["stopped"])
        if (folder / _BEST_FILE).is_file():
            self._best = load_file(folder / _BEST_FILE)


class _Remember(TrainerCallback):
    """First of all callbacks: writes into checkpoints, and restores the best adapter at the end of a run."""

    def __init__(self, evaluations: Evaluations) -> None:
        self._evaluations = evaluations

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Write into the checkpoint that the Trainer has written."""
        folder = Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
        if folder.is_dir() and state.is_world_process_zero:
            self._evaluations.save(folder)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Restore the best adapter of a finished run."""
        if self._evaluations.stopped or state.global_step >= state.max_steps:
            self._evaluations.take_best_(kwargs["model"])


def _trained(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return copies of the trained parameters."""
    return {
        name: parameter.detach().to("cpu", copy=True)
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }


def _in_words(point: EvaluationPoint) -> str:
    """Format the result, such as ``held-out ppl 12.3``."""
    if point.perplexity is not None:
        return f"held-out ppl {point.perplexity:.4g}"
    if point.accuracy is not None:
        return f"held-out accuracy {point.accuracy:.1%}"
    return f"held-out loss {point.loss:.4g}"
