"""Training arguments of the task's Trainer, with the few defaults that pruning changes."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from loraprune.checkpoint.source import ModelSource
from loraprune.options.near import did_you_mean
from loraprune.processes.ranks import launched
from loraprune.tasks.event_files import check_report_to
from loraprune.tasks.training_rules import check_given, check_usable

if TYPE_CHECKING:
    from transformers import TrainingArguments

    from loraprune.metrics.perplexity import Collator
    from loraprune.tasks.task import Task

_DEFAULTS: dict[str, Any] = {
    "learning_rate": 1e-4,  # for models that write text, by size
    "lr_scheduler_type": "cosine",
    "warmup_steps": 0.05,
    "num_train_epochs": 2,
    "logging_steps": 5,
    "save_steps": 100,
    "save_total_limit": 2,
    "report_to": "none",
}
"""Defaults that differ from the Trainer's; the schedule and the epochs are those of the LoRAPrune paper."""

LARGEST_RATE = 5e-3

DEFAULT_MAX_LENGTH = 1024
RECOMPUTATION = ("activation_checkpointing", "gradient_checkpointing")


def training_arguments(
    task: Task,
    given: Mapping[str, Any] | TrainingArguments,
    source: ModelSource,
    *,
    run_dir: Path,
    collator: Collator | None = None,
    deepspeed: Mapping[str, Any] | None = None,
) -> tuple[TrainingArguments, int | None]:
    """Complete the user's values to the arguments of the task's Trainer.

    If the user gives values by name, missing ones get our defaults. bf16 and gradient checkpointing are on by default
    on an accelerator, and off on a CPU, where they only cost time. If the user gives an object, only its output folder
    changes.

    Returns:
        The arguments, and the maximum length of a row of text (None if rows are not text).

    Raises:
        ValueError: a name is not an argument of the task, a value is wrong, or sequences would be longer than the
            model's context.
    """
    if isinstance(given, Mapping):
        check_given(given, task.arguments_class())
        arguments, max_length = _from_values(
            task, given if deepspeed is None else {**given, "deepspeed": deepspeed}, source, run_dir, collator
        )
    else:
        arguments, max_length = _from_object(task, given, source, run_dir)
    if arguments.max_steps == 0 or (arguments.max_steps < 0 and arguments.num_train_epochs <= 0):
        raise ValueError("A run without steps tunes nothing: set --max-steps or --num-train-epochs above 0.")
    if task.has_tokenizer:
        check_length(max_length, source.context)
    check_report_to(arguments)
    check_usable(arguments)
    arguments.disable_tqdm = True
    # Use one device even if several are visible: torch's DataParallel would share the gates between its replicas.
    arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments, max_length if task.has_tokenizer else None


def _from_values(
    task: Task, given: Mapping[str, Any], source: ModelSource, run_dir: Path, collator: Collator | None
) -> tuple[TrainingArguments, int | None]:
    """Build arguments from values by name."""
    accelerated = source.device.type != "cpu"
    cls = task.arguments_class()
    known = {field.name for field in fields(cls) if field.init}
    _check_names(task, given, known)
    values: dict[str, Any] = {
        **_DEFAULTS,
        "bf16": accelerated and torch.cuda.is_bf16_supported(including_emulation=False),
        **_recomputation(given, known, on=accelerated and source.recomputes),
        **_rate(task, source),
        "use_cpu": not accelerated,
        **_among_processes(source),
        "max_length": min(DEFAULT_MAX_LENGTH, source.context) if source.context else DEFAULT_MAX_LENGTH,
        "output_dir": str(run_dir),
        **task.defaults(collator),
        **given,
    }
    if not source.recomputes and any(values.get(name) for name in RECOMPUTATION):
        raise ValueError("This model cannot compute activations again. Leave gradient_checkpointing off.")
    max_length = values["max_length"] if "max_length" in known else values.pop("max_length")
    return cls(**values), max_length


def _among_processes(source: ModelSource) -> dict[str, Any]:
    """Arguments for several processes. Only a mixture of experts may have adapters without a gradient in a step."""
    config = source.config.get_text_config()
    mixture = any(getattr(config, name, None) for name in ("num_experts", "num_local_experts", "n_routed_experts"))
    return {} if launched() == 1 or mixture else {"ddp_find_unused_parameters": False}


def _rate(task: Task, source: ModelSource) -> dict[str, float]:
    """LoRA learning rate by the size of a model that writes text."""
    width = getattr(source.config.get_text_config(), "hidden_size", None)
    return {"learning_rate": rate_for(width)} if task.writes_text and isinstance(width, int) else {}


def rate_for(hidden_size: int) -> float:
    """Compute the LoRA learning rate: ``5e-4 · (2000 / hidden size)^0.78``, at most :data:`LARGEST_RATE`.

    Source: the value for Llama at alpha 32 in Tinker's documentation (Thinking Machines Lab, hyperparameters of
    supervised learning). Our experiments use alpha 16 (docs/results.md).
    """
    return float(f"{min(5e-4 * (2000 / hidden_size) ** 0.78, LARGEST_RATE):.1e}")


def _from_object(
    task: Task, given: TrainingArguments, source: ModelSource, run_dir: Path
) -> tuple[TrainingArguments, int | None]:
    """Copy the user's own arguments. Values left at their defaults are adapted to what the model supports.

    Raises:
        ValueError: the arguments belong to another Trainer.
    """
    cls = task.arguments_class()
    if not isinstance(given, cls):
        raise ValueError(
            f"training is a {type(given).__name__}, and a run of {task.name} takes a {cls.__name__} of "
            f"{cls.__module__.partition('.')[0]}, or a mapping of its fields."
        )
    said = given_values(given)
    check_given(said, cls)
    arguments = copy.copy(given)
    arguments.output_dir = str(run_dir)
    if not source.recomputes and "gradient_checkpointing" not in said:
        arguments.gradient_checkpointing = False
    if not source.recomputes and arguments.gradient_checkpointing:
        raise ValueError("This model cannot compute activations again. Leave gradient_checkpointing off.")
    if not hasattr(arguments, "max_length"):
        return arguments, min(DEFAULT_MAX_LENGTH, source.context or DEFAULT_MAX_LENGTH)
    lengths: Any = arguments
    if source.context is not None and "max_length" not in said:
        lengths.max_length = min(lengths.max_length, source.context)
    return arguments, lengths.max_length


def given_values(given: Mapping[str, Any] | TrainingArguments) -> dict[str, Any]:
    """Return the arguments that the user set, by name; of an object, those that differ from the defaults."""
    if isinstance(given, Mapping):
        return dict(given)
    # bf16 is on by default and raises an error if the machine does not support it.
    default = type(given)(output_dir=given.output_dir, use_cpu=given.use_cpu, bf16=given.bf16)
    values = {field.name: getattr(given, field.name) for field in fields(given) if field.init}
    return {name: value for name, value in values.items() if value != getattr(default, name) and name != "output_dir"}


def _recomputation(given: Mapping[str, Any], known: set[str], *, on: bool) -> dict[str, bool]:
    """Set gradient checkpointing, under the name that the arguments have for it, unless the user sets it."""
    name = next(name for name in RECOMPUTATION if name in known)
    if "max_length" in known:  # trl's arguments, in which the old name is on by default
        name = RECOMPUTATION[-1]
    return {} if any(name in given for name in RECOMPUTATION) else {name: on}


def _check_names(task: Task, given: Mapping[str, Any], known: set[str]) -> None:
    """Reject arguments that only trl's Trainer for causal language models has, and unknown arguments."""
    allowed = known | ({"max_length"} if task.has_tokenizer else set())
    for name in given:
        if name in allowed:
            continue
        from trl import SFTConfig

        if name in {field.name for field in fields(SFTConfig)}:
            raise ValueError(
                f"A run of {task.name} does not have the training option {name!r}, which is one of trl's for language "
                "models. Leave it out."
            )
        raise ValueError(f"There is no training option {name!r}.{did_you_mean(name, sorted(allowed))}")


def check_length(max_length: int | None, context: int | None) -> None:
    """Check that a model can read rows of this length.

    Raises:
        ValueError: the rows would be too short to learn from, or longer than the model's context.
    """
    if max_length is None or max_length < 2:
        raise ValueError(f"max_length is {max_length}; sequences need at least 2 tokens.")
    if context is not None and max_length > context:
        raise ValueError(
            f"max_length is {max_length}, longer than the model's context of {context} tokens. "
            f"Use --max-length {context} or less."
        )
