"""Short runs of the joint recipe on classifiers and encoder–decoder models."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from loraprune import PruneResult, PruningConfig, RunOptions, prune

CONFIG = PruningConfig(ratio=0.5, calibration_sequences=64)
TRAINING: dict[str, Any] = {
    "max_steps": 60,
    "per_device_train_batch_size": 32,
    "learning_rate": 5e-3,
    "logging_steps": 1,
    "bf16": False,
}


def run(
    model: Any, data: Any, config: PruningConfig = CONFIG, *, output: Path | None = None, **changes: Any
) -> PruneResult:
    """A run that trains, measures and saves; latency is measured on request."""
    options = {"output": output, "latency": False, **changes.pop("options", {})}
    training = {**TRAINING, **changes.pop("training", {})}
    return prune(model, data, config, training=training, options=RunOptions(**options), **changes)


def losses(result: PruneResult) -> list[float]:
    return [point["loss"] for point in result.metrics["history"]]


class CtrlC(TrainerCallback):
    """Sends this process what Ctrl-C sends, in the middle of a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step + 1 == self.step:
            os.kill(os.getpid(), signal.SIGINT)
