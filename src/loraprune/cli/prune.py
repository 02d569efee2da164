"""``loraprune prune``: prune a checkpoint while LoRA tunes it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from loraprune.cli.console import results_console
from loraprune.cli.declared import declared, nested
from loraprune.cli.options import SWITCH, Option, fields_of, option
from loraprune.cli.training_options import (
    ARCHITECTURE,
    DISTILLATION,
    LORA,
    PROCESSES,
    Invocation,
    TrainingCommand,
    goals,
    kept,
    settle_amount,
    sources,
)
from loraprune.importance.configs import Compresso, Pst
from loraprune.pruning.config import PruningConfig
from loraprune.tasks.options import LoraOptions, RunOptions

# The options of ``loraprune prune`` that are not training options, declared once and grouped as they are used.

_SHORT = {
    "load_in_8bit": "quantize the base by LLM.int8 of bitsandbytes while it is pruned (off)",
    "load_in_4bit": "quantize the base to NF4 with double quantization (off)",
}

_GROUPS: dict[str, tuple[Option, ...]] = {
    "what goes in and where it goes": sources("pruned checkpoint"),
    "pruning": (
        *declared(PruningConfig, "pruning", "ratio"),
        *declared(PruningConfig, "pruning", "widths"),
        *goals(),
        *declared(
            PruningConfig,
            "pruning",
            *("criterion", "taylor_form", "group_reduction", "offload_grads", "lora_form"),
            *("allocation", "dimensions", "keep_layers"),
        ),
        ARCHITECTURE,
        *declared(
            PruningConfig,
            "pruning",
            *("prune_start", "prune_end", "cuts", "cut_every", "repair", "damping", "calibration_sequences"),
            *("channel_multiple", "head_counts", "average_decay", "average_bias_correction", "apply"),
            "max_skipped_steps",
            old={"repair": "refit", "damping": "refit_damping", "head_counts": "head_rounding"},
        ),
    ),
    "criterion pst (single weights become zero)": nested(Pst),
    "criterion compresso": nested(Compresso),
    "quantized base": (
        *(option(name, "call", help, **SWITCH) for name, help in _SHORT.items()),
        *declared(RunOptions, "run", "quantization", "keep_quantized"),
    ),
    "LoRA": LORA,
    "distillation": DISTILLATION,
    "several processes (torchrun, accelerate launch)": PROCESSES,
    "what is measured and kept": (
        *declared(RunOptions, "run", "latency", "measure_unrecovered"),
        *kept("the unmerged adapter and the plan"),
    ),
}

PRUNE_OPTIONS: dict[str, Option] = {item.name: item for group in _GROUPS.values() for item in group}


def prune_command(arguments: Sequence[str]) -> int:
    """Run the command."""
    return _COMMAND.main(arguments)


SHORT_FORMS = {"load_in_8bit": "bnb-8bit", "load_in_4bit": "bnb-4bit"}


def settle_quantization(values: dict[str, Any], given: dict[str, Any]) -> None:
    """Turn the short forms into the quantization that they stand for; those of the command line win.

    Raises:
        ValueError: two different ones were given in the same place.
    """
    for place in (given, values):
        short = {full for name, full in SHORT_FORMS.items() if place.get(name)}
        found = short | ({place["quantization"]} if place.get("quantization") else set())
        if len(found) > 1:
            raise ValueError(
                f"The base is quantized in one way only, and {' and '.join(sorted(found))} were given. Leave one out."
            )
        if found:
            values["quantization"] = found.pop()
            break
    for name in SHORT_FORMS:
        values.pop(name, None)


NOT_OF_ZEROS = {
    "cuts": "--cut-every says how many steps lie between two masks",
    "repair": "no group goes that a layer could make up for",
    "latency": "shapes stay, and plain inference is no faster",
}
"""Options that can do nothing where single weights become zero, and why."""


def _check_unstructured(values: dict[str, Any], given: dict[str, Any]) -> None:
    """Refuse what the command line asks for and the criterion ``pst`` does not do.

    Raises:
        ValueError: something of that was given.
    """
    if values.get("criterion") != "pst":
        return
    for name, why in NOT_OF_ZEROS.items():
        if given.get(name) and given[name] != "none":
            raise ValueError(f"--{name} is nothing for the criterion 'pst': {why}. Leave it out.")


def _settle(values: dict[str, Any], given: dict[str, Any]) -> None:
    """Let one way to say how much goes replace the other one in a recipe.

    Raises:
        ValueError: both were given in the same place.
    """
    settle_amount(values, given)
    settle_quantization(values, given)
    _check_unstructured(values, given)


def _configured(values: dict[str, Any]) -> tuple[PruningConfig, LoraOptions, RunOptions]:
    """What was asked for, checked.

    Raises:
        ValueError: a value is none that an option takes, or options do not go together.
    """
    pruning = fields_of(PRUNE_OPTIONS, values, "pruning")
    if pruning.get("ratio") == 0.0:
        raise ValueError(
            "ratio is 0, which removes nothing: it must lie between 0 and 1 (loraprune recover tunes without pruning)."
        )
    pruning |= {name: fields_of(PRUNE_OPTIONS, values, name) for name in ("pst", "compresso")}
    return (
        PruningConfig(**pruning),
        LoraOptions(**fields_of(PRUNE_OPTIONS, values, "lora")),
        RunOptions(**fields_of(PRUNE_OPTIONS, values, "run")),
    )


def _work(asked: Invocation) -> None:
    from loraprune.cli.console import show_result
    from loraprune.cli.progress import TrainingProgress
    from loraprune.recipes.prune import prune

    values = asked.values
    config, lora, options = _configured(values)
    progress = TrainingProgress(asked.console, quiet=asked.quiet)
    try:
        result = prune(
            values["model"],
            values["data"],
            config,
            training=asked.training,
            lora=lora,
            tokenizer=values.get("tokenizer"),
            image_processor=values.get("image_processor"),
            options=replace(options, command=asked.command),
            callbacks=[progress],
        )
    finally:
        progress.close()
    show_result(results_console(), result)


_COMMAND = TrainingCommand(
    name="prune",
    description="Prune a model while LoRA tunes it, and write an ordinary checkpoint with fewer heads and channels.",
    usage="loraprune prune MODEL --data DATA [--ratio 0.5] -o OUT [options]",
    example="loraprune prune MODEL --data DATA -o OUT",
    groups=_GROUPS,
    work=_work,
    settle=_settle,
    check=_configured,
)

prune_parser = _COMMAND.help_parser
