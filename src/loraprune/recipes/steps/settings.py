"""The settings of a run as plain values, for its record."""

from __future__ import annotations

from dataclasses import asdict
from enum import Enum
from typing import TYPE_CHECKING, Any

from loraprune.record.run_record import plain

if TYPE_CHECKING:
    from peft import LoraConfig
    from transformers import TrainingArguments

    from loraprune.recipes.steps.check import TrainingJob

SHAPING = (
    "max_steps",
    "num_train_epochs",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "learning_rate",
    "lr_scheduler_type",
    "warmup_steps",
    "weight_decay",
    "max_grad_norm",
    "max_length",
    "bf16",
    "gradient_checkpointing",
    "seed",
)
"""The training arguments that shape the result."""


def run_settings(job: TrainingJob) -> dict[str, Any]:
    """Pruning or recovery, adapter and training."""
    pruning = {"pruning": asdict(job.pruning)}
    if job.recovery:
        pruning = {"recovery": {"keep_zeros": job.keep_zeros, "max_skipped_steps": job.pruning.max_skipped_steps}}
    if job.base_quantized:
        pruning["base"] = {
            "quantization": job.options.quantization or "as passed in",
            "keep_quantized": job.options.keep_quantized,
        }
    return {
        **pruning,
        "lora": {
            "r": job.lora.r,
            "alpha": job.lora.lora_alpha,
            "dropout": job.lora.lora_dropout,
            "target_modules": _targets(job.lora),
            **_further(job.lora),
        },
        "training": training_settings(job.arguments, job.max_length),
    }


def _targets(lora: LoraConfig) -> list[str] | str:
    targets = lora.target_modules or []
    return targets if isinstance(targets, str) else sorted(targets)


def _further(lora: LoraConfig) -> dict[str, list[str]]:
    """What is trained beside the layers, where there is such a thing."""
    found = {name: getattr(lora, name, None) for name in ("modules_to_save", "target_parameters")}
    return {name: sorted(set(values)) for name, values in found.items() if values}


def training_settings(arguments: TrainingArguments, max_length: int | None) -> dict[str, Any]:
    """The training arguments that shape the result; the maximal length where rows are text."""
    values = {name: getattr(arguments, name, None) for name in SHAPING}
    values["max_length"] = max_length
    if max_length is None:
        del values["max_length"]
    return {name: _plain(value) for name, value in values.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, Enum):  # some are strings, too, that print as SchedulerType.COSINE
        return value.value
    value = plain(value)
    return value if isinstance(value, (int, float, str, bool, type(None))) else str(value)
