"""``loraprune recover``: tuning of a pruned or sparse checkpoint; zeros stay zero."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from loraprune.cli.console import results_console
from loraprune.cli.declared import declared
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
    kept,
    output_option,
)
from loraprune.cli.training_options import Invocation, TrainingCommand
from loraprune.pruning.config import PruningConfig
from loraprune.tasks.options import LoraOptions, RunOptions

_GROUPS: OptionGroups = {
    "most used": (
        data_option("training data"),
        output_option("tuned checkpoint"),
        *LENGTH,
        CONFIG,
        *RESUMING,
    ),
    "distillation": DISTILLATION,
    "training": (*OPTIMIZATION, *EVALUATIONS),
    "LoRA": LORA,
    "data": (*FILES, *TEXTS, *MEASURED),
    "result": kept("the unmerged adapter"),
    "model": HUB,
}

_RARE: OptionGroups = {
    "several processes (torchrun, accelerate launch)": PROCESSES,
    "details of runs": (
        option(
            "keep_zeros",
            "recovery",
            "keep zero weights of the blocks' linear layers at zero, in training and in the merge (default: on if the "
            "model is sparse)",
            **SWITCH,
        ),
        *declared(PruningConfig, "recovery", "max_skipped_steps"),
        *declared(RunOptions, "run", "allow_changes"),
    ),
}

RECOVER_OPTIONS: dict[str, Option] = by_name(_GROUPS, _RARE)

_DESCRIPTION = """Tune a pruned or sparse model with LoRA, and write an ordinary checkpoint with the adapter merged.
Zero weights stay zero: a 2:4 checkpoint stays 2:4."""


def recover_command(arguments: Sequence[str]) -> int:
    """Run the command."""
    return _COMMAND.main(arguments)


def _configured(values: dict[str, Any]) -> tuple[LoraOptions, RunOptions]:
    """Make the configurations.

    Raises:
        ValueError: a value is not valid, or options exclude each other.
    """
    return (
        LoraOptions(**fields_of(RECOVER_OPTIONS, values, "lora")),
        RunOptions(**fields_of(RECOVER_OPTIONS, values, "run")),
    )


def _work(asked: Invocation) -> None:
    from loraprune.cli.console import check_pushed, show_result
    from loraprune.recipes.recover import recover

    values = asked.values
    lora, options = _configured(values)
    options = replace(options, command=asked.command)
    result = recover(
        values["model"],
        values["data"],
        **fields_of(RECOVER_OPTIONS, values, "recovery"),
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
    name="recover",
    description=_DESCRIPTION,
    usage="loraprune recover MODEL --data DATA -o OUT [options]",
    example="loraprune recover pruned --data train.jsonl -o tuned",
    groups=_GROUPS,
    rare=_RARE,
    work=_work,
    check=_configured,
)

recover_parser = _COMMAND.help_parser
