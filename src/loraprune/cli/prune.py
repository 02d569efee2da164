"""``loraprune prune``: prune a checkpoint while LoRA tunes it."""

from __future__ import annotations

import argparse
import difflib
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from loraprune.cli.console import open_console, quiet_libraries, report_errors, results_console
from loraprune.cli.prune_options import OPTIONS, TRAINING_HELP, add_options

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
    add_options(parser)
    return parser


class _ArgumentError(Exception):
    """Carries a parser's complaint."""


def full_parser() -> argparse.ArgumentParser:
    """The parser that knows every field of SFTConfig too; nothing has a default."""
    from dataclasses import fields

    from transformers import HfArgumentParser
    from transformers.hf_argparser import string_to_bool
    from trl import SFTConfig

    class Parser(HfArgumentParser):
        def error(self, message: str) -> NoReturn:
            raise _ArgumentError(message)

    description: Any = SFTConfig
    parser = Parser(description, prog="loraprune prune", allow_abbrev=False, conflict_handler="resolve")
    add_options(parser)
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


def read_recipe(path: Path) -> dict[str, Any]:
    """Read a YAML recipe.

    Raises:
        ValueError: it cannot be read or is no mapping.
    """
    import yaml

    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"The recipe {path} does not exist.") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"The recipe {path} cannot be read: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise ValueError(f"The recipe {path} is no mapping of option names to values.")
    return {str(key).replace("-", "_"): value for key, value in values.items()}


def _typed(name: str, value: Any, parser: argparse.ArgumentParser) -> Any:
    """A recipe's value as the command line would have read it: to YAML, 1e-4 is text.

    Raises:
        ValueError: the command line would have refused it.
    """
    flag = f"--{name.replace('_', '-')}"
    action = parser._option_string_actions.get(flag)
    if value is None or isinstance(value, dict) or (isinstance(value, list) and action and action.nargs is None):
        return value
    if action is None or isinstance(action, argparse.BooleanOptionalAction):
        wanted, what = (str, "text") if action is None else (bool, "true or false")
        if not isinstance(value, wanted):
            raise ValueError(f"The recipe's {name} is {value!r}; it must be {what}.")
        return value
    try:
        words = [flag, *map(str, value)] if isinstance(value, list) else [f"{flag}={value}"]
        return vars(parser.parse_args(words))[name]
    except _ArgumentError as error:
        raise ValueError(f"The recipe's {name} is {value!r}: {error}") from None


def merge(
    recipe: dict[str, Any], given: dict[str, Any], training: set[str], parser: argparse.ArgumentParser
) -> dict[str, Any]:
    """Recipe and command line together; the command line wins.

    Raises:
        ValueError: a name is unknown (the nearest known one is suggested) or is set another way here; a recipe's
            value is not one that the option takes.
    """
    known = set(OPTIONS) | training | {"model", "config"}
    for name in recipe:
        if name not in known:
            near = difflib.get_close_matches(name, sorted(known), n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"The recipe has an unknown option {name!r}.{hint}")
    values = {name: _typed(name, value, parser) for name, value in recipe.items()} | given
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


def _fields(values: dict[str, Any], target: str) -> dict[str, Any]:
    """The given values of one target, by field name."""
    return {
        option.field or name: values[name]
        for name, option in OPTIONS.items()
        if option.target == target and values.get(name) is not None
    }


def main(arguments: Sequence[str]) -> int:
    """Run the command."""
    arguments = [_with_dashes(argument) for argument in arguments]
    if not arguments or "-h" in arguments or "--help" in arguments:
        parser = help_parser()
        parser.print_help() if arguments else parser.print_usage()
        return 0 if arguments else 2
    console = open_console(quiet="-q" in arguments or "--quiet" in arguments)

    def work() -> int:
        parser = full_parser()
        try:
            given = vars(parser.parse_args(arguments))
        except _ArgumentError as error:
            raise ValueError(f"{error}{_suggestion(str(error))} (loraprune prune --help lists the options)") from None
        recipe = read_recipe(given["config"]) if "config" in given else {}
        training = training_fields()
        values = merge(recipe, given, training, parser)
        _require(values)
        return _run(
            values, {name: values[name] for name in training - set(OPTIONS) if name in values}, console, arguments
        )

    return report_errors(console, work)


def _with_dashes(argument: str) -> str:
    """``--lora_r`` as ``--lora-r``: training options are understood both ways, and so are ours."""
    name, equals, value = argument.partition("=")
    return name.replace("_", "-") + equals + value if name.startswith("--") else argument


def _suggestion(message: str) -> str:
    """The known option nearest to an unknown one."""
    marker = "unrecognized arguments: "
    if marker not in message:
        return ""
    unknown = message.partition(marker)[2].split()[0].partition("=")[0]
    names = ["--" + name.replace("_", "-") for name in (*OPTIONS, *training_fields())]
    near = difflib.get_close_matches(unknown.replace("_", "-"), names, n=1)
    return f"; did you mean {near[0]}?" if near else ""


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
    pruning = _fields(values, "pruning")
    if pruning.get("ratio") == 0.0:
        raise ValueError("ratio is 0, which removes nothing: it must lie between 0 and 1.")
    pruning["any_head_count"] = pruning.pop("head_rounding", "config") == "any"
    quiet = bool(values.get("quiet"))
    progress = TrainingProgress(console, quiet=quiet)
    try:
        result = prune(
            values["model"],
            values["data"],
            PruningConfig(**pruning),
            training=training,
            lora=LoraOptions(**_fields(values, "lora")),
            tokenizer=values.get("tokenizer"),
            image_processor=values.get("image_processor"),
            options=RunOptions(**_fields(values, "run"), command=shlex.join(["loraprune", "prune", *arguments])),
            callbacks=[progress],
        )
    finally:
        progress.close()
    show_result(results_console(), result)
    return 0
