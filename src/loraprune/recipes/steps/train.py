"""Training in a run of the joint recipe, to the end or until the user stops it."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

from loraprune.processes.ranks import is_main, on_any
from loraprune.pruning.callback import PruningCallback
from loraprune.pruning.errors import InterruptedRunError
from loraprune.pruning.resume import STATE_FILE, last_checkpoint
from loraprune.pruning.stopping import Stopping
from loraprune.recipes.steps.evaluation import Evaluations
from loraprune.recipes.steps.prepared import PreparedTraining
from loraprune.recipes.steps.quantized import RememberQuantization, adapter_in_32_bits_
from loraprune.recipes.steps.same_run import RememberRun, TakeNewRate
from loraprune.recipes.steps.sharded import let_replicate_
from loraprune.recipes.steps.zero import zero_engine
from loraprune.recipes.steps.zeros import RememberKeeping
from loraprune.record.numbers import counted
from loraprune.record.places import telling_of_failed_writes
from loraprune.sparsity.masked_lora import keep_zeros_

if TYPE_CHECKING:
    from transformers import PreTrainedModel, Trainer, TrainerControl, TrainerState, TrainingArguments

    from loraprune.tasks.distillation import Teacher

logger = logging.getLogger("loraprune")

_WAY_ON = "Free some space and resume with --resume, or start again if no state was saved before."


def build_trainer(
    prepared: PreparedTraining,
    model: PreTrainedModel,
    pruning: PruningCallback,
    callbacks: Sequence[TrainerCallback],
    teacher: Teacher | None = None,
) -> Trainer:
    """Make the Trainer of the run, with the adapter on the model; with ``keep_zeros``, the adapter keeps zeros.

    The loss follows a teacher after the last cut only. Before the first cut, the model equals the teacher, so the
    gradients of the divergence, and with them the scores, would be zero.

    Raises:
        ValueError: the adapter cannot keep zeros.
    """
    from transformers import PrinterCallback

    if teacher is not None:
        teacher.is_heard = lambda: pruning.run is not None and not pruning.run.pending
    trainer = prepared.trainer(model, callbacks, teacher)
    if prepared.options.sharded and prepared.arguments.deepspeed is None:
        let_replicate_(trainer)
    if prepared.keep_zeros:
        adapted: Any = trainer.model
        logger.info("LoRA keeps the zeros of %d of the weights that it adapts", keep_zeros_(adapted))
    if prepared.base_quantized:
        base: Any = trainer.model
        adapter_in_32_bits_(base)
    trainer.remove_callback(PrinterCallback)
    pruning.lead_(trainer)
    if prepared.options.quantization is not None:
        trainer.callback_handler.callbacks.insert(0, RememberQuantization(prepared.options.quantization))
    trainer.callback_handler.callbacks.insert(0, RememberRun(prepared))
    if prepared.options.allow_changes:
        trainer.add_callback(TakeNewRate())
    if prepared.recovery:
        # First, because the state of pruning, written later, makes a checkpoint complete.
        trainer.callback_handler.callbacks.insert(0, RememberKeeping(bool(prepared.keep_zeros)))
    return trainer


def train(
    trainer: Trainer,
    pruning: PruningCallback,
    prepared: PreparedTraining,
    run_dir: Path,
    evaluations: Evaluations,
) -> None:
    """Train to the end, or raise InterruptedRunError if the user stops the run."""
    evaluations.attach_(trainer)
    interrupt = StopOnInterrupt(pruning)
    trainer.add_callback(interrupt)
    rows = counted(len(prepared.train_rows), prepared.task.row_name)
    logger.info("Training on %s: %s", rows, _in_words(prepared))
    stopped = False
    pruning.phases.begin()
    try:
        if prepared.checkpoint is not None and (evaluations.stopped or _training_is_over(prepared.checkpoint)):
            _take_finished_adapter(trainer, pruning, prepared.checkpoint, evaluations)
        else:
            writing = telling_of_failed_writes(f"The state of the run in {run_dir}", _WAY_ON)
            with writing, zero_engine(trainer, pruning):
                trainer.train(resume_from_checkpoint=str(prepared.checkpoint) if prepared.checkpoint else None)
    except KeyboardInterrupt:
        stopped = True
    except BaseException:
        remove_unsaved(run_dir, prepared)
        raise
    finally:
        interrupt.release()
    if stopped or (interrupt.requested and trainer.state.global_step < trainer.state.max_steps):
        saved = remove_unsaved(run_dir, prepared)
        where = f"The state of step {_step_of(saved)} is saved in {run_dir}" if saved else "No state was saved yet"
        how = "the same command with --resume continues from there" if saved else "start again"
        raise InterruptedRunError(
            f"Stopped at step {trainer.state.global_step} of {trainer.state.max_steps}; nothing was written to the "
            f"output folder. {where}: {how}."
        )


def _in_words(prepared: PreparedTraining) -> str:
    """Summarize rank, learning rate and teacher."""
    arguments, teacher = prepared.arguments, prepared.teacher
    words = [f"LoRA of rank {prepared.lora.r}", f"learning rate {arguments.learning_rate:g}"]
    if teacher is not None:
        words.append(f"{teacher.share:.0%} of the loss follows {teacher.source.name} after the last cut")
    return ", ".join(words)


def remove_unsaved(run_dir: Path, prepared: PreparedTraining) -> Path | None:
    """Remove the run's folder if no state was saved, and incomplete checkpoints in any case.

    Returns:
        The newest checkpoint, or None.
    """
    saved = last_checkpoint(run_dir) if prepared.options.output else None
    if not is_main():
        return saved
    if saved is None and run_dir.is_dir():
        shutil.rmtree(run_dir)
    for path in run_dir.glob("checkpoint-[0-9]*"):
        if not (path / STATE_FILE).exists():
            shutil.rmtree(path, ignore_errors=True)
    return saved


def _training_is_over(checkpoint: Path) -> bool:
    """Return whether the run was stopped after its last step, during measuring or saving."""
    state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    return bool(state["global_step"] >= state["max_steps"])


def _take_finished_adapter(
    trainer: Trainer, pruning: PruningCallback, checkpoint: Path, evaluations: Evaluations
) -> None:
    """Load the last adapter without the Trainer's loop, which would make one step too many."""
    assert pruning.run is not None
    assert trainer.model is not None
    pruning.steps = _step_of(checkpoint)
    pruning.run.begin(trainer.model, pruning.run.total_steps or pruning.steps)
    trainer._load_from_checkpoint(str(checkpoint))
    evaluations.take_best_(trainer.model)
    pruning.run.end()


def _step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


# Ctrl-C or SIGTERM during training: finish the step, save the state, and stop.


class StopOnInterrupt(TrainerCallback):
    """Turns the first Ctrl-C or SIGTERM into a stop after the step, with a saved state; a second one stops at once."""

    def __init__(self, pruning: PruningCallback) -> None:
        self.requested = False
        self._pruning = pruning
        self._signals = Stopping(self._handle, ignored=True)

    def _handle(self, number: int) -> None:
        self.requested = True
        self.release()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Install the signal handlers."""
        self._signals.__enter__()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Request a save and a stop after a signal."""
        self.requested = on_any(self.requested)  # processes get the signal at different times
        if self.requested and state.global_step < state.max_steps:
            control.should_save = args.save_strategy != "no" and not self._pruning.is_skipping
            control.should_training_stop = True
            self._pruning.interrupted = True

    def release(self) -> None:
        """Restore the previous signal handlers."""
        self._signals.release()
