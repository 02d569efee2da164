"""``loraprune recover``: tune a pruned or sparse checkpoint, of which zeros stay zero."""

from __future__ import annotations

from collections.abc import Sequence

from loraprune.cli.console import results_console
from loraprune.cli.options import fields_of
from loraprune.cli.recover_options import GROUPS, OPTIONS
from loraprune.cli.training_command import Invocation, TrainingCommand

DESCRIPTION = """Tune a pruned or sparse model with LoRA, and write an ordinary checkpoint with the adapter merged.

Weights of the blocks' linear layers that are zero stay zero, so that a 2:4 checkpoint stays 2:4."""


def main(arguments: Sequence[str]) -> int:
    """Run the command."""
    return COMMAND.main(arguments)


def _work(asked: Invocation) -> None:
    from loraprune.cli.progress import TrainingProgress
    from loraprune.cli.results import show_result
    from loraprune.recipes.recover import recover
    from loraprune.tasks.lora import LoraOptions
    from loraprune.tasks.options import RunOptions

    values = asked.values
    progress = TrainingProgress(asked.console, quiet=asked.quiet, prunes=False)
    try:
        result = recover(
            values["model"],
            values["data"],
            **fields_of(OPTIONS, values, "recovery"),
            training=asked.training,
            lora=LoraOptions(**fields_of(OPTIONS, values, "lora")),
            tokenizer=values.get("tokenizer"),
            image_processor=values.get("image_processor"),
            options=RunOptions(**fields_of(OPTIONS, values, "run"), command=asked.command),
            callbacks=[progress],
        )
    finally:
        progress.close()
    show_result(results_console(), result)


COMMAND = TrainingCommand(
    name="recover",
    description=DESCRIPTION,
    usage="loraprune recover MODEL --data DATA -o OUT [options]",
    example="loraprune recover MODEL --data DATA -o OUT",
    groups=GROUPS,
    work=_work,
)
