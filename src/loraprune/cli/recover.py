"""``loraprune recover``: tune a pruned or sparse checkpoint, of which zeros stay zero."""

from __future__ import annotations

from collections.abc import Sequence

from loraprune.cli.console import results_console
from loraprune.cli.declared import declared
from loraprune.cli.options import SWITCH, Option, fields_of, option
from loraprune.cli.training_options import (
    ARCHITECTURE,
    DISTILLATION,
    LORA,
    PROCESSES,
    Invocation,
    TrainingCommand,
    kept,
    sources,
)
from loraprune.pruning.config import PruningConfig
from loraprune.tasks.options import LoraOptions, RunOptions

# The options of ``loraprune recover`` that are not training options, declared once and grouped as they are used.

_GROUPS: dict[str, tuple[Option, ...]] = {
    "what goes in and where it goes": sources("tuned checkpoint"),
    "recovery": (
        option("keep_zeros", "recovery", "weights of the blocks' linear layers that are zero stay zero, in training "
               "and in the merge (on where the model is sparse)", **SWITCH),
        *declared(PruningConfig, "recovery", "max_skipped_steps"),
        ARCHITECTURE,
    ),
    "LoRA": LORA,
    "distillation": DISTILLATION,
    "several processes (torchrun, accelerate launch)": PROCESSES,
    "what is kept": kept("the unmerged adapter"),
}  # fmt: skip

RECOVER_OPTIONS: dict[str, Option] = {item.name: item for group in _GROUPS.values() for item in group}

_DESCRIPTION = """Tune a pruned or sparse model with LoRA, and write an ordinary checkpoint with the adapter merged.

Weights of the blocks' linear layers that are zero stay zero, so that a 2:4 checkpoint stays 2:4."""


def recover_command(arguments: Sequence[str]) -> int:
    """Run the command."""
    return _COMMAND.main(arguments)


def _work(asked: Invocation) -> None:
    from loraprune.cli.console import show_result
    from loraprune.cli.progress import TrainingProgress
    from loraprune.recipes.recover import recover

    values = asked.values
    progress = TrainingProgress(asked.console, quiet=asked.quiet, prunes=False)
    try:
        result = recover(
            values["model"],
            values["data"],
            **fields_of(RECOVER_OPTIONS, values, "recovery"),
            training=asked.training,
            lora=LoraOptions(**fields_of(RECOVER_OPTIONS, values, "lora")),
            tokenizer=values.get("tokenizer"),
            image_processor=values.get("image_processor"),
            options=RunOptions(**fields_of(RECOVER_OPTIONS, values, "run"), command=asked.command),
            callbacks=[progress],
        )
    finally:
        progress.close()
    show_result(results_console(), result)


_COMMAND = TrainingCommand(
    name="recover",
    description=_DESCRIPTION,
    usage="loraprune recover MODEL --data DATA -o OUT [options]",
    example="loraprune recover MODEL --data DATA -o OUT",
    groups=_GROUPS,
    work=_work,
)

recover_parser = _COMMAND.help_parser
