"""Ctrl-C during training: finish the step, save the state, and stop."""

from __future__ import annotations

import signal
import threading
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

from loraprune.pruning.callback import PruningCallback

if TYPE_CHECKING:
    from transformers import TrainerControl, TrainerState, TrainingArguments


class StopOnInterrupt(TrainerCallback):
    """Turns the first Ctrl-C into an orderly stop with the state saved; a second one stops at once."""

    def __init__(self, pruning: PruningCallback) -> None:
        self.requested = False
        self._pruning = pruning
        self._previous: Any = None

    def _handle(self, number: int, frame: Any) -> None:
        self.requested = True
        signal.signal(number, self._previous)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Take over Ctrl-C; only the main thread can."""
        if threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGINT, self._handle)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Ask for a save and a stop once Ctrl-C came."""
        if self.requested and state.global_step < state.max_steps:
            control.should_save = args.save_strategy != "no"
            control.should_training_stop = True
            self._pruning.interrupted = True

    def release(self) -> None:
        """Give Ctrl-C back."""
        if self._previous is not None and not self.requested:
            signal.signal(signal.SIGINT, self._previous)
        self._previous = None
