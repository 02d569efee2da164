"""``loraprune prune``: prune a checkpoint while LoRA tunes it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from loraprune.cli.console import results_console
from loraprune.cli.options import fields_of
from loraprune.cli.prune_options import GROUPS, OPTIONS
from loraprune.cli.training_command import Invocation, TrainingCommand


def main(arguments: Sequence[str]) -> int:
    """Run the command."""
    return COMMAND.main(arguments)


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
    "refit": "no group goes that a layer could make up for",
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
        if given.get(name):
            raise ValueError(f"--{name} is nothing for the criterion 'pst': {why}. Leave it out.")


def _settle(values: dict[str, Any], given: dict[str, Any]) -> None:
    """Let one way to say how much goes replace the other one in a recipe.

    Raises:
        ValueError: both were given in the same place.
    """
    if "target_params" in given and "ratio" not in given:
        values.pop("ratio", None)
    if "ratio" in given and "target_params" not in given:
        values.pop("target_params", None)
    if values.get("target_params") is not None and "ratio" in values:
        raise ValueError("--ratio and --target-params say the same thing; give one of them.")
    settle_quantization(values, given)
    _check_unstructured(values, given)


def _work(asked: Invocation) -> None:
    from loraprune.cli.progress import TrainingProgress
    from loraprune.cli.results import show_result
    from loraprune.pruning.config import PruningConfig
    from loraprune.recipes.prune import prune
    from loraprune.tasks.lora import LoraOptions
    from loraprune.tasks.options import RunOptions

    values = asked.values
    pruning = fields_of(OPTIONS, values, "pruning")
    if pruning.get("ratio") == 0.0:
        raise ValueError(
            "ratio is 0, which removes nothing: it must lie between 0 and 1 (loraprune recover tunes without pruning)."
        )
    pruning["pst"] = fields_of(OPTIONS, values, "pst")
    pruning["compresso"] = fields_of(OPTIONS, values, "compresso")
    pruning["any_head_count"] = pruning.pop("head_rounding", "config") == "any"
    progress = TrainingProgress(asked.console, quiet=asked.quiet)
    try:
        result = prune(
            values["model"],
            values["data"],
            PruningConfig(**pruning),
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
    name="prune",
    description="Prune a model while LoRA tunes it, and write an ordinary checkpoint with fewer heads and channels.",
    usage="loraprune prune MODEL --data DATA [--ratio 0.5] -o OUT [options]",
    example="loraprune prune MODEL --data DATA -o OUT",
    groups=GROUPS,
    work=_work,
    settle=_settle,
)
