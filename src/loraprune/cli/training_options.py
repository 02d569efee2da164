"""The options that all commands that train share, declared once; ``target`` says what each one sets."""

from __future__ import annotations

import argparse
import itertools
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import Field, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from loraprune.cli.console import open_console, quiet_libraries, report_errors
from loraprune.cli.declared import declared
from loraprune.cli.options import (
    SWITCH,
    Option,
    OptionGroups,
    add_options,
    old_names,
    option,
    parameter_count,
    with_new_names,
)
from loraprune.cli.parsing import ArgumentError, Parser, check_dashes, complaint, flags_of, with_dashes
from loraprune.cli.recipe_files import check_known, check_recipe_stays, read_recipe, typed
from loraprune.cli.training_names import training_names
from loraprune.tasks.options import LoraOptions, RunOptions
from loraprune.tasks.training_rules import REMEDIES

if TYPE_CHECKING:
    from rich.console import Console


def sources(result: str) -> tuple[Option, ...]:
    """What goes in and where it goes.

    Args:
        result: what the output folder holds, for the help text: ``"pruned checkpoint"``.
    """
    return (
        *inputs("training data"),
        option("output", "run", f"folder of the {result}", type=Path),
        *declared(RunOptions, "run", "split", "eval_split", "data_name", "eval_data", "eval_sequences"),
        *declared(RunOptions, "run", "answers_only", "bos", "overwrite", "resume"),
        *declared(RunOptions, "run", "allow_changes", "allow_bad_result", "trust_remote_code", "revision"),
    )


def inputs(data: str) -> tuple[Option, ...]:
    """Data, and what turns them into the model's input; ``data`` says what for: ``"training data"``."""
    return (
        option(
            "data",
            "call",
            f"{data}: a .jsonl, .json, .csv, .parquet or .txt file, a folder of such files or of images by class, or a "
            "hub data set",
        ),
        option("tokenizer", "call", "checkpoint to take the tokenizer from (default: MODEL)"),
        option("image_processor", "call", "checkpoint to take the image processor from (default: MODEL)"),
    )


AMOUNTS = ("ratio", "widths", "target_params", "target_size", "speedup")
"""Options of which one says how much goes; a smaller cache (``target_kv_cache``) goes with the last three of them."""


def goals() -> tuple[Option, ...]:
    """What the result is to be, instead of a ratio."""
    first, *others = declared(
        *(RunOptions, "run", "target_params", "target_size", "target_kv_cache"),
        *("speedup", "speedup_phase", "speedup_tokens", "speedup_batch"),
    )
    return (option("target_params", "run", first.help, type=parameter_count), *others)


def settle_amount(values: dict[str, Any], given: dict[str, Any], known: Sequence[str] = AMOUNTS) -> str | None:
    """Let an amount on the command line replace that of a recipe.

    Args:
        values: recipe and command line together; changed.
        given: the command line's.
        known: options that say how much goes.

    Returns:
        The option that says it, or None.

    Raises:
        ValueError: several were given in the same place.
    """
    known = (*known, "target_kv_cache")
    asked = {name for name in known if given.get(name) is not None}
    if asked:
        kept = asked
        if not asked & {"ratio", "widths", "sparsity"}:  # a smaller cache goes with the others
            kept = asked | ({"target_kv_cache"} if asked != {"target_kv_cache"} else set(known[2:]) - {"sparsity"})
        for name in known:
            if name not in kept:
                values.pop(name, None)
    found = [name for name in known if values.get(name) is not None]
    if "target_kv_cache" in found and not {"ratio", "widths", "sparsity"} & set(found):
        found = [name for name in found if name != "target_kv_cache"] or found
    if set(found) == {"ratio", "sparsity"}:
        return "ratio"  # the configuration says what each of them does
    if len(found) > 1:
        first, second = (f"--{name.replace('_', '-')}" for name in found[:2])
        raise ValueError(f"{first} and {second} both say how much is to go. Give one of them.")
    return found[0] if found else None


LORA = declared(LoraOptions, "lora", "lora_r", "lora_alpha", "lora_dropout", "lora_target_modules", "lora_experts")

PROCESSES = declared(RunOptions, "run", "fsdp")
"""How processes of one launcher share the work."""

DISTILLATION = declared(RunOptions, "run", "distill", "teacher")

ARCHITECTURE = option("architecture", "call", "YAML description of a family that loraprune does not know", type=Path)


def kept(adapter: str) -> tuple[Option, ...]:
    """What is kept of a run.

    Args:
        adapter: what ``--save-adapter`` saves.
    """
    return (
        *declared(RunOptions, "run", "dtype", "verify", "prompt", "report"),
        option("save_adapter", "run", f"also save {adapter} (off)", **SWITCH),
        *declared(RunOptions, "run", "keep_run"),
        option("quiet", "call", "results only", **SWITCH),
    )


TRAINING_HELP = """training options, as trl's SFTConfig names them (nearly all of its fields can be given):
  --max-steps, --num-train-epochs (2), --per-device-train-batch-size (8), --gradient-accumulation-steps (1),
  --learning-rate (by size), --lr-scheduler-type (cosine), --warmup-steps (0.05), --weight-decay, --max-grad-norm,
  --max-length (1024, or the model's context), --seed (42), --bf16, --gradient-checkpointing,
  --logging-steps (5), --save-steps (100), --report-to (none), ...
"""

# A command that trains: its own options and those of trl, from a recipe and from the command line.

Settle = Callable[[dict[str, Any], dict[str, Any]], None]


def _as_they_are(values: dict[str, Any], given: dict[str, Any]) -> None:
    """Leave the values as they are."""


@dataclass(frozen=True, kw_only=True)
class Invocation:
    """What a user asked for.

    Attributes:
        values: of our options, by name.
        training: of the training options.
        console: for progress.
        command: as typed.
    """

    values: dict[str, Any]
    training: dict[str, Any]
    console: Console
    command: str

    @property
    def quiet(self) -> bool:
        """Whether results are all that is wanted."""
        return bool(self.values.get("quiet"))


@dataclass(frozen=True, kw_only=True)
class TrainingCommand:
    """A command that trains.

    Attributes:
        name: as typed.
        description: what it does.
        usage: the shortest way to call it, and ``example``: with nothing but what is needed.
        groups: its options.
        work: does it.
        needs: options that must be given.
        settle: changes the values (its first argument) where options exclude each other; the second argument holds
            those of the command line alone.
        check: makes the configurations of the values, to see that they are right.
    """

    name: str
    description: str
    usage: str
    example: str
    groups: OptionGroups
    work: Callable[[Invocation], None]
    settle: Settle = _as_they_are
    check: Callable[[dict[str, Any]], object] = lambda values: None
    needs: tuple[str, ...] = ("model", "data", "output")

    @property
    def prog(self) -> str:
        """The words that call it."""
        return f"loraprune {self.name}"

    @property
    def options(self) -> dict[str, Option]:
        """By name."""
        return {item.name: item for group in self.groups.values() for item in group}

    def main(self, arguments: Sequence[str]) -> int:
        """Run the command."""
        arguments = [with_dashes(argument) for argument in arguments]
        if not arguments or "-h" in arguments or "--help" in arguments:
            parser = self.help_parser()
            parser.print_help() if arguments else parser.print_usage()
            return 0 if arguments else 2
        console = open_console(quiet="-q" in arguments or "--quiet" in arguments)
        return report_errors(console, lambda: self._run(arguments, console))

    def help_parser(self) -> Parser:
        """The parser that shows help: our options, without the seconds that trl takes to import."""
        parser = Parser(
            prog=self.prog,
            description=self.description,
            epilog=TRAINING_HELP,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            usage=self.usage,
        )
        add_options(parser, self.groups)
        parser.further = re.findall(r"--[a-z-]+", TRAINING_HELP)
        return parser

    def _run(self, arguments: Sequence[str], console: Console) -> int:
        self._check_own(arguments)
        options, training = self.options, training_fields()
        values = self._values(arguments, options, training)
        self._check_needed(values)
        quiet_libraries()
        check_recipe_stays(values)
        if values.get("architecture") is not None:
            from loraprune.architectures import read_spec, register

            register(read_spec(values["architecture"]))
        self.work(
            Invocation(
                values=values,
                training={name: values[name] for name in training if name in values and name not in options},
                console=console,
                command=shlex.join(["loraprune", self.name, *arguments]),
            )
        )
        return 0

    def _check_own(self, arguments: Sequence[str]) -> None:
        """Complain of our own options at once: those of trl take seconds to import.

        Raises:
            ValueError: a value is not one that an option of ours takes, or one that is needed was not given.
        """
        parser = Parser(prog=self.prog, allow_abbrev=False)
        add_options(parser, self.groups)
        try:
            check_dashes(arguments, flags_of(parser))
            found, further = parser.parse_known_args(arguments)
        except ArgumentError as error:
            raise ValueError(complaint(str(error), self.prog, flags_of(parser))) from None
        given = vars(found)
        self._check_further(further, flags_of(parser))
        if "config" not in given:
            self._check_needed(given, without=("model",) if further else ())  # what a value of trl's looks like
            old = old_names(self.options.values())
            if not old & given.keys():  # of which a warning is shown later, once
                values = dict(given)
                self.settle(values, given)
                self.check(values)

    def _check_further(self, further: Sequence[str], own: Sequence[str]) -> None:
        """Complain of options that are neither ours nor trl's, and of those of trl's that cannot be given.

        Raises:
            ValueError: there is one.
        """
        names = training_names()
        known = {f"--{prefix}{name.replace('_', '-')}" for name in names for prefix in ("", "no-")}
        for start, argument in enumerate(further):
            flag = argument.partition("=")[0]
            check_taken(flag.removeprefix("--").replace("-", "_"))
            if names and re.match("--[a-z]", flag) and flag not in known:
                values = itertools.takewhile(lambda word: not word.startswith("-"), further[start + 1 :])
                words = " ".join([argument, *values])
                raise ValueError(complaint(f"unrecognized arguments: {words}", self.prog, [*own, *sorted(known)]))

    def _check_needed(self, values: Mapping[str, Any], without: Sequence[str] = ()) -> None:
        for name, remedy in (
            ("model", f"Name a checkpoint: {self.example}."),
            ("data", "Name the training data with --data."),
            ("output", "Name the folder of the result with -o."),
        ):
            if name in self.needs and name not in without and values.get(name) is None:
                raise ValueError(f"No {name} was given. {remedy}")

    def _values(
        self, arguments: Sequence[str], options: dict[str, Option], training: Mapping[str, Field[Any]]
    ) -> dict[str, Any]:
        """Recipe and command line together; the command line wins.

        Raises:
            ValueError: a name is unknown (the nearest known one is suggested) or is set another way here; a recipe's
                value is not one that the option takes.
        """
        parser = full_parser(self.prog, self.groups)
        try:
            given = vars(parser.parse_args(arguments))
        except ArgumentError as error:
            raise ValueError(complaint(str(error), self.prog, flags_of(parser))) from None
        recipe = read_recipe(given["config"], self.prog) if "config" in given else {}
        old = old_names(options.values())
        check_known(recipe, {*options, *old, *training, "model"})
        given = with_new_names(given, old)
        read = {name: typed(name, value, parser, options, training) for name, value in recipe.items()}
        values = with_new_names(read, old) | given
        self.settle(values, given)
        for name in REMEDIES:
            if name in values and name not in options:
                check_taken(name)
        return values


def check_taken(name: str) -> None:
    """Refuse a training option that these commands do not take.

    Raises:
        ValueError: it is one of these; the message says what to do instead.
    """
    if name in REMEDIES:
        raise ValueError(f"--{name.replace('_', '-')} is not an option of this command. {REMEDIES[name]}")


def full_parser(prog: str, groups: OptionGroups) -> argparse.ArgumentParser:
    """The parser that knows every field of SFTConfig too; nothing has a default."""
    from dataclasses import fields

    from transformers import HfArgumentParser
    from transformers.hf_argparser import string_to_bool
    from trl import SFTConfig

    class Parser(HfArgumentParser):
        def error(self, message: str) -> NoReturn:
            raise ArgumentError(message)

    description: Any = SFTConfig
    parser = Parser(description, prog=prog, allow_abbrev=False, conflict_handler="resolve")
    add_options(parser, groups)
    switches = {field.name for field in fields(SFTConfig) if "bool" in str(field.type)}
    for action in parser._actions:
        action.default = argparse.SUPPRESS
        action.required = False
        if action.dest in switches and action.nargs is None and isinstance(action, argparse._StoreAction):
            # `bool | None`: without this, --bf16 would want a value
            action.nargs, action.const, action.type = "?", True, string_to_bool
    built: argparse.ArgumentParser = parser
    return built


def training_fields() -> dict[str, Field[Any]]:
    """The fields of SFTConfig that a user may set, by name."""
    from dataclasses import fields

    from trl import SFTConfig

    return {field.name: field for field in fields(SFTConfig) if field.init}
