"""``loraprune prune``: prune a checkpoint while LoRA tunes it."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from loraprune.cli.console import open_console, quiet_libraries, report_errors, results_console
from loraprune.cli.options import add_options, fields_of
from loraprune.cli.prune_options import GROUPS, OPTIONS, TRAINING_HELP
from loraprune.cli.recipes import ArgumentError, check_known, read_recipe, suggestion, typed, with_dashes

if TYPE_CHECKING:
    from rich.console import Console

DESCRIPTION = "Prune a model while LoRA tunes it, and write an ordinary checkpoint with fewer heads and channels."
_ANEW = "It does not go together with a model that changes while it is trained."
REMEDIES = {
    "output_dir": "Say -o/--output.",
    "resume_from_checkpoint": "Say --resume.",
    "packing": "Plain text is packed and everything else is not.",
    "assistant_only_loss": "Say --answers-only or --no-answers-only.",
    "completion_only_loss": "Say --answers-only or --no-answers-only.",
    "eval_strategy": "Perplexity is measured before and after training, on --eval-data.",
    "dataset_text_field": "Text is read from the column 'text'.",
    "model_init_kwargs": "The model is loaded in its own dtype.",
    "chat_template_path": "The tokenizer's own chat template is used; name another tokenizer with --tokenizer.",
    "eos_token": "The tokenizer's own is used; name another tokenizer with --tokenizer.",
    "save_only_model": "A run could not be resumed.",
    "padding_free": "Scores are taken sequence by sequence.",
    "auto_find_batch_size": _ANEW,
    "load_best_model_at_end": _ANEW,
    "torch_compile": _ANEW,
    "fsdp": _ANEW,
    "deepspeed": _ANEW,
}


def help_parser() -> argparse.ArgumentParser:
    """The parser that shows help: our options, without the seconds that trl takes to import."""
    parser = argparse.ArgumentParser(
        prog="loraprune prune",
        description=DESCRIPTION,
        epilog=TRAINING_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="loraprune prune MODEL --data DATA [--ratio 0.5] -o OUT [options]",
    )
    add_options(parser, GROUPS)
    return parser


def full_parser() -> argparse.ArgumentParser:
    """The parser that knows every field of SFTConfig too; nothing has a default."""
    from dataclasses import fields

    from transformers import HfArgumentParser
    from transformers.hf_argparser import string_to_bool
    from trl import SFTConfig

    class Parser(HfArgumentParser):
        def error(self, message: str) -> NoReturn:
            raise ArgumentError(message)

    description: Any = SFTConfig
    parser = Parser(description, prog="loraprune prune", allow_abbrev=False, conflict_handler="resolve")
    add_options(parser, GROUPS)
    switches = {field.name for field in fields(SFTConfig) if "bool" in str(field.type)}
    for action in parser._actions:
        action.default = argparse.SUPPRESS
        action.required = False
        if action.dest in switches and action.nargs is None and isinstance(action, argparse._StoreAction):
            # `bool | None`: without this, --bf16 would want a value
            action.nargs, action.const, action.type = "?", True, string_to_bool
    built: argparse.ArgumentParser = parser
    return built


def training_fields() -> set[str]:
    """Names of the fields of SFTConfig that a user may set."""
    from dataclasses import fields

    from trl import SFTConfig

    return {field.name for field in fields(SFTConfig) if field.init}


def merge(
    recipe: dict[str, Any], given: dict[str, Any], training: set[str], parser: argparse.ArgumentParser
) -> dict[str, Any]:
    """Recipe and command line together; the command line wins.

    Raises:
        ValueError: a name is unknown (the nearest known one is suggested) or is set another way here; a recipe's
            value is not one that the option takes.
    """
    known = set(OPTIONS) | training | {"model", "config"}
    check_known(recipe, known)
    values = {name: typed(name, value, parser) for name, value in recipe.items()} | given
    if "target_params" in given and "ratio" not in given:
        values.pop("ratio", None)
    if "ratio" in given and "target_params" not in given:
        values.pop("target_params", None)
    if values.get("target_params") is not None and "ratio" in values:
        raise ValueError("--ratio and --target-params say the same thing; give one of them.")
    for name in REMEDIES:
        if name in values:
            raise ValueError(f"--{name.replace('_', '-')} is not an option of this command. {REMEDIES[name]}")
    return values


def _require(values: dict[str, Any]) -> None:
    for name, remedy in (
        ("model", "Name a checkpoint: loraprune prune MODEL --data DATA -o OUT."),
        ("data", "Name the training data with --data."),
        ("output", "Name the folder of the result with -o."),
    ):
        if values.get(name) is None:
            raise ValueError(f"No {name} was given. {remedy}")


def main(arguments: Sequence[str]) -> int:
    """Run the command."""
    arguments = [with_dashes(argument) for argument in arguments]
    if not arguments or "-h" in arguments or "--help" in arguments:
        parser = help_parser()
        parser.print_help() if arguments else parser.print_usage()
        return 0 if arguments else 2
    console = open_console(quiet="-q" in arguments or "--quiet" in arguments)

    def work() -> int:
        parser = full_parser()
        try:
            given = vars(parser.parse_args(arguments))
        except ArgumentError as error:
            near = suggestion(str(error), (*OPTIONS, *training_fields()))
            raise ValueError(f"{error}{near} (loraprune prune --help lists the options)") from None
        recipe = read_recipe(given["config"]) if "config" in given else {}
        training = training_fields()
        values = merge(recipe, given, training, parser)
        _require(values)
        return _run(
            values, {name: values[name] for name in training - set(OPTIONS) if name in values}, console, arguments
        )

    return report_errors(console, work)


def _run(values: dict[str, Any], training: dict[str, Any], console: Console, arguments: list[str]) -> int:
    from loraprune.architectures import read_spec, register
    from loraprune.cli.progress import TrainingProgress
    from loraprune.cli.results import show_result
    from loraprune.recipes.joint import prune
    from loraprune.recipes.lora import LoraOptions
    from loraprune.recipes.options import RunOptions
    from loraprune.training.config import PruningConfig

    quiet_libraries()
    if values.get("architecture") is not None:
        register(read_spec(values["architecture"]))
    pruning = fields_of(OPTIONS, values, "pruning")
    if pruning.get("ratio") == 0.0:
        raise ValueError("ratio is 0, which removes nothing: it must lie between 0 and 1.")
    pruning["any_head_count"] = pruning.pop("head_rounding", "config") == "any"
    quiet = bool(values.get("quiet"))
    progress = TrainingProgress(console, quiet=quiet)
    command = shlex.join(["loraprune", "prune", *arguments])
    try:
        result = prune(
            values["model"],
            values["data"],
            PruningConfig(**pruning),
            training=training,
            lora=LoraOptions(**fields_of(OPTIONS, values, "lora")),
            tokenizer=values.get("tokenizer"),
            image_processor=values.get("image_processor"),
            options=RunOptions(
                **fields_of(OPTIONS, values, "run"), command=shlex.join(["loraprune", "prune", *arguments])
            ),
            callbacks=[progress],
        )
    finally:
        progress.close()
    show_result(results_console(), result)
    return 0
