"""One finished run that many tests look at, and the options that make runs quick."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from loraprune import PruneResult, PruningConfig, RunOptions, prune

QUICK: dict[str, Any] = {
    "max_steps": 6,
    "per_device_train_batch_size": 4,
    "max_length": 32,
    "logging_steps": 1,
    "bf16": False,
}
"""Training arguments of a run of a fraction of a second."""

CONFIG = PruningConfig(ratio=0.5, calibration_sequences=8)


def finished_run(checkpoint: Path, data: Path, output: Path) -> PruneResult:
    """A run with everything that can be asked for."""
    return prune(
        checkpoint,
        data,
        CONFIG,
        training={**QUICK, "seed": 11},
        options=RunOptions(
            output=output,
            save_adapter=True,
            prompt="the old river",
            unrecovered=True,
            command="loraprune prune tiny-llama --data texts.jsonl",
        ),
    )
