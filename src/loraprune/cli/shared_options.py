"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from loraprune.cli.declared import SEVERAL, declared
from loraprune.cli.options import OF_TRL, SWITCH, Option, option, parameter_count
from loraprune.tasks.options import LoraOptions, RunOptions

CONFIG = option(
    "config",
    "call",
    "YAML file of options, or the name of a published recipe; options given here win",
    type=Path,
    metavar="RECIPE",
)


def data_option(purpose: str) -> Option:
    """Make the option ``--data``.

    Args:
        purpose: purpose of the data: ``"training data"``.
    """
    return option(
        "data",
        "call",
        f"{purpose}: files, folders, Hub datasets, or demo (text of Python's standard library); also several, or mixed "
        "by weight (forms below)",
        **SEVERAL,
        metavar="DATA",
    )


def output_option(result: str) -> Option:
    """Make the option ``--output``.

    Args:
        result: content of the folder: ``"pruned checkpoint"``.
    """
    return option("output", "run", f"folder for the {result}", type=Path)


QUIET = option("quiet", "call", "print results only", **SWITCH)

RESUMING = declared(RunOptions, "run", "resume", "overwrite", "dry_run")

EVALUATIONS = declared(RunOptions, "run", "eval_steps", "early_stopping_patience", "load_best")

MEASURED = declared(RunOptions, "run", "eval_data", "eval_split", "eval_sequences")

FILES = (
    *declared(RunOptions, "run", "split", "data_name", "columns", "streaming", "stopping_strategy"),
    option("tokenizer", "call", "checkpoint to take the tokenizer from (default: MODEL)"),
    option("image_processor", "call", "checkpoint to take the image processor from (default: MODEL)"),
)
"""Options for finding data and preparing it for the model."""

TEXTS = declared(RunOptions, "run", "answers_only", "bos")

ARCHITECTURE = option("architecture", "call", "YAML description of an unknown model family", type=Path)

HUB = (*declared(RunOptions, "run", "revision", "trust_remote_code"), ARCHITECTURE)
"""Options for finding and reading the model."""


AMOUNTS = ("ratio", "widths", "target_params", "target_size", "speedup")
"""Options for the amount to remove, of which one is given; ``target_kv_cache`` combines with the last three."""


def goals() -> tuple[Option, ...]:
    """Make the options for goals of the result, which replace a ratio."""
    first, *others = declared(
        *(RunOptions, "run", "target_params", "target_size", "target_kv_cache"),
        *("speedup", "speedup_phase", "speedup_tokens", "speedup_batch"),
    )
    return (option("target_params", "run", first.help, type=parameter_count), *others)


def settle_amount(values: dict[str, Any], given: dict[str, Any], known: Sequence[str] = AMOUNTS) -> str | None:
    """Let an amount on the command line replace that of a recipe.

    Args:
        values: values of recipe and command line together, modified in place.
        given: values of the command line.
        known: options for the amount to remove.

    Returns:
        The option that gives the amount, or None.

    Raises:
        ValueError: several amounts were given in the same place.
    """
    known = (*known, "target_kv_cache")
    asked = {name for name in known if given.get(name) is not None}
    if asked:
        kept = asked
        if not asked & {"ratio", "widths", "sparsity"}:  # a cache size combines with the other goals
            kept = asked | ({"target_kv_cache"} if asked != {"target_kv_cache"} else set(known[2:]) - {"sparsity"})
        for name in known:
            if name not in kept:
                values.pop(name, None)
    found = [name for name in known if values.get(name) is not None]
    if "target_kv_cache" in found and not {"ratio", "widths", "sparsity"} & set(found):
        found = [name for name in found if name != "target_kv_cache"] or found
    if set(found) == {"ratio", "sparsity"}:
        return "ratio"  # the configuration raises the error
    if len(found) > 1:
        first, second = (f"--{name.replace('_', '-')}" for name in found[:2])
        raise ValueError(f"{first} and {second} both set the amount to remove. Give one of them.")
    return found[0] if found else None


LORA = declared(LoraOptions, "lora", "lora_r", "lora_alpha", "lora_dropout", "lora_target_modules", "lora_experts")

PROCESSES = declared(RunOptions, "run", "fsdp")
"""Options for sharing the work among the processes of a launcher."""

DISTILLATION = declared(RunOptions, "run", "distill", "teacher")


PUSH = declared(RunOptions, "run", "push_to_hub", "private", "hub_revision")


def kept(adapter: str) -> tuple[Option, ...]:
    """Make the options for the result.

    Args:
        adapter: files that ``--save-adapter`` saves.
    """
    return (
        *declared(RunOptions, "run", "dtype", "prompt", "report", "verify", "allow_bad_result"),
        option("save_adapter", "run", f"also save {adapter}", **SWITCH),
        *declared(RunOptions, "run", "keep_run"),
        *PUSH,
        QUIET,
    )


def _of_trl(name: str, help: str, metavar: str | None = "N") -> Option:
    return option(name, OF_TRL, help, **({"metavar": metavar} if metavar else SWITCH))


LENGTH = (
    _of_trl("num_train_epochs", "passes over the training data (default: 2)", "X"),
    _of_trl("max_steps", "optimizer steps; replaces --num-train-epochs"),
    _of_trl("learning_rate", "peak learning rate (default: by model size)", "X"),
    _of_trl("per_device_train_batch_size", "rows in a batch on each device (default: 8)"),
    _of_trl("max_length", "tokens in a row (default: 1024, or the model's context)"),
)
"""Training options that are used most."""

OPTIMIZATION = (
    _of_trl("gradient_accumulation_steps", "batches in an optimizer step (default: 1)"),
    _of_trl("gradient_checkpointing", "recompute activations to save memory (default: on with an accelerator)", None),
    _of_trl("bf16", "bfloat16 autocast (default: on if the accelerator supports it)", None),
    _of_trl("warmup_steps", "steps of learning rate warmup, or their share of the run (default: 0.05)", "X"),
    _of_trl("lr_scheduler_type", "learning rate schedule (default: cosine)", "NAME"),
    _of_trl("weight_decay", "weight decay of the optimizer (default: 0)", "X"),
    _of_trl("max_grad_norm", "gradient norm to clip to (default: 1)", "X"),
    _of_trl("seed", "random seed (default: 42)"),
    _of_trl("logging_steps", "steps between two logs (default: 5)"),
    _of_trl("save_steps", "steps between two saved states of the run (default: 100)"),
    _of_trl("report_to", "experiment tracker, such as tensorboard or wandb (default: none)", "NAME"),
)
