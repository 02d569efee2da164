"""Training arguments: trl's SFTConfig, with the few defaults that pruning changes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from trl import SFTConfig

DEFAULTS: dict[str, Any] = {
    "learning_rate": 1e-4,
    "lr_scheduler_type": "cosine",
    "num_train_epochs": 2,
    "logging_steps": 5,
    "save_steps": 100,
    "save_total_limit": 2,
    "report_to": "none",
}
"""Values that differ from trl's own; learning rate, schedule and epochs are those of the LoRAPrune paper."""

DEFAULT_MAX_LENGTH = 1024


def training_arguments(
    given: Mapping[str, Any], *, run_dir: Path, device: torch.device, context: int | None
) -> SFTConfig:
    """Complete what the user gave to an SFTConfig.

    bf16 and gradient checkpointing are on by default on an accelerator and off on a CPU, where they only cost time.

    Raises:
        ValueError: a value is wrong, or sequences would be longer than the model's context.
    """
    from trl import SFTConfig

    accelerated = device.type != "cpu"
    values: dict[str, Any] = {
        **DEFAULTS,
        "bf16": accelerated and torch.cuda.is_bf16_supported(including_emulation=False),
        "gradient_checkpointing": accelerated,
        "use_cpu": not accelerated,
        "max_length": min(DEFAULT_MAX_LENGTH, context) if context else DEFAULT_MAX_LENGTH,
        "output_dir": str(run_dir),
        **given,
    }
    if values.get("fp16"):
        raise ValueError(
            "fp16 training is not supported: its loss scaling would get into the scores. Use bf16 or 32 bits."
        )
    arguments = SFTConfig(**values)
    if arguments.per_device_train_batch_size < 1 or arguments.gradient_accumulation_steps < 1:
        raise ValueError("The batch size and the number of accumulation steps must be at least 1.")
    if arguments.max_steps == 0 or (arguments.max_steps < 0 and arguments.num_train_epochs <= 0):
        raise ValueError("A run of no steps tunes nothing: give --max-steps or --num-train-epochs above 0.")
    if arguments.max_length is None or arguments.max_length < 2:
        raise ValueError(f"max_length is {arguments.max_length}; sequences need at least 2 tokens.")
    if context is not None and arguments.max_length > context:
        raise ValueError(
            f"max_length is {arguments.max_length}, longer than the model's context of {context} tokens. "
            f"Use --max-length {context} or less."
        )
    arguments.disable_tqdm = True
    # One device, also where several are visible: torch's DataParallel would share the gates between its replicas.
    arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments
