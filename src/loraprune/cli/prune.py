"""``loraprune prune``: pruning during LoRA fine-tuning."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from loraprune.cli.console import results_console
from loraprune.cli.declared import declared, nested
from loraprune.cli.options import SWITCH, Option, OptionGroups, by_name, fields_of, option
from loraprune.cli.shared_options import (
    CONFIG,
    DISTILLATION,
    EVALUATIONS,
    FILES,
    HUB,
    LENGTH,
    LORA,
    MEASURED,
    OPTIMIZATION,
    PROCESSES,
    RESUMING,
    TEXTS,
    data_option,
    goals,
    kept,
    output_option,
    settle_amount,
)
from loraprune.cli.training_options import Invocation, TrainingCommand
from loraprune.importance.configs import Compresso, Pst
from loraprune.pruning.config import PruningConfig
from loraprune.tasks.options import LoraOptions, RunOptions

_SHORT = {
    "load_in_8bit": "quantize the base model to 8 bits with bitsandbytes during the run",
    "load_in_4bit": "quantize the base model to 4 bits (NF4) with bitsandbytes during the run",
}


def _pruning(*names: str) -> tuple[Option, ...]:
    old = {"repair": "refit", "damping": "refit_damping", "head_counts": "head_rounding"}
    return declared(PruningConfig, "pruning", *names, old=old)


_GROUPS: OptionGroups = {
    "most used": (
        data_option("training data"),
        output_option("pruned checkpoint"),
        *_pruning("ratio", "criterion"),
        *LENGTH,
        CONFIG,
        *RESUMING,
    ),
    "instead of --ratio": (*_pruning("widths"), *goals()),
    "pruning": _pruning(
        *("dimensions", "keep_layers", "allocation", "repair", "calibration_sequences"),
        *("cuts", "prune_start", "prune_end"),
    ),
    "data": (*FILES, *TEXTS, *MEASURED),
    "training": (*OPTIMIZATION, *EVALUATIONS),
    "LoRA": LORA,
    "quantized base model": (
        *(option(name, "call", help, **SWITCH) for name, help in _SHORT.items()),
        *declared(RunOptions, "run", "quantization", "keep_quantized"),
    ),
    "result": (*declared(RunOptions, "run", "latency"), *kept("the unmerged adapter and the pruning plan")),
    "model": HUB,
}

_RARE: OptionGroups = {
    "distillation": DISTILLATION,
    "several processes (torchrun, accelerate launch)": PROCESSES,
    "details of pruning": (
        *_pruning("taylor_form", "lora_form", "group_reduction", "offload_grads", "channel_multiple", "head_counts"),
        *_pruning("cut_every", "damping", "average_decay", "average_bias_correction", "apply", "max_skipped_steps"),
    ),
    "details of runs": declared(RunOptions, "run", "allow_changes", "measure_unrecovered"),
    "criterion pst (sets single weights to zero)": nested(Pst),
    "criterion compresso": nested(Compresso),
}

PRUNE_OPTIONS: dict[str, Option] = by_name(_GROUPS, _RARE)


def prune_command(arguments: Sequence[str]) -> int:
    """Run the command."""
    return _COMMAND.main(arguments)


SHORT_FORMS = {"load_in_8bit": "bnb-8bit", "load_in_4bit": "bnb-4bit"}


def settle_quantization(values: dict[str, Any], given: dict[str, Any]) -> None:
    """Replace the short forms by the quantization that they stand for; the command line wins.

    Raises:
        ValueError: two different quantizations were given in the same place.
    """
    for place in (given, values):
        short = {full for name, full in SHORT_FORMS.items() if place.get(name)}
        found = short | ({place["quantization"]} if place.get("quantization") else set())
        if len(found) > 1:
            raise ValueError(
                f"Only one quantization is possible, but {' and '.join(sorted(found))} were given. Leave one out."
            )
        if found:
            values["quantization"] = found.pop()
            break
    for name in SHORT_FORMS:
        values.pop(name, None)


NOT_OF_ZEROS = {
    "cuts": "--cut-every sets the number of steps between two masks",
    "repair": "no group is removed",
    "latency": "shapes stay the same, and plain inference is no faster",
}
"""Options without effect if single weights become zero, with the reason."""


def _check_unstructured(values: dict[str, Any], given: dict[str, Any]) -> None:
    """Reject options on the command line that the criterion ``pst`` does not support.

    Raises:
        ValueError: such an option was given.
    """
    if values.get("criterion") != "pst":
        return
    for name, why in NOT_OF_ZEROS.items():
        if given.get(name) and given[name] != "none":
            raise ValueError(f"--{name} does not apply to the criterion 'pst': {why}. Leave it out.")


def _settle(values: dict[str, Any], given: dict[str, Any]) -> None:
    """Resolve options that exclude each other; the command line replaces a recipe's choice.

    Raises:
        ValueError: two such options were given in the same place, or one does not apply to the criterion.
    """
    settle_amount(values, given)
    settle_quantization(values, given)
    _check_unstructured(values, given)


def _configured(values: dict[str, Any]) -> tuple[PruningConfig, LoraOptions, RunOptions]:
    """Make the configurations.

    Raises:
        ValueError: a value is not valid, or options exclude each other.
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
    from loraprune.cli.console import check_pushed, show_result
    from loraprune.recipes.prune import prune

    values = asked.values
    config, lora, options = _configured(values)
    options = replace(options, command=asked.command)
    result = prune(
        values["model"],
        values["data"],
        config,
        training=asked.training,
        lora=lora,
        tokenizer=values.get("tokenizer"),
        image_processor=values.get("image_processor"),
        options=options,
        verbosity=asked.verbosity,
    )
    show_result(results_console(), result)
    check_pushed(result, options)


_COMMAND = TrainingCommand(
    name="prune",
    description="Prune a model during LoRA fine-tuning, and write a checkpoint with fewer heads and channels.",
    usage="loraprune prune MODEL --data DATA -o OUT [options]",
    example="loraprune prune MODEL --data train.jsonl --ratio 0.3 -o pruned",
    groups=_GROUPS,
    rare=_RARE,
    work=_work,
    settle=_settle,
    check=_configured,
)

prune_parser = _COMMAND.help_parser
