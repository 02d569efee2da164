"""A command that trains: its own options and those of trl, from a recipe and from the command line."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

from loraprune.cli.console import open_console, quiet_libraries, report_errors
from loraprune.cli.options import Groups, Option, add_options
from loraprune.cli.recipes import ArgumentError, check_known, read_recipe, suggestion, typed, with_dashes
from loraprune.cli.training_options import REMEDIES, TRAINING_HELP

if TYPE_CHECKING:
    from rich.console import Console

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
    """

    name: str
    description: str
    usage: str
    example: str
    groups: Groups
    work: Callable[[Invocation], None]
    settle: Settle = _as_they_are
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

    def help_parser(self) -> argparse.ArgumentParser:
        """The parser that shows help: our options, without the seconds that trl takes to import."""
        parser = argparse.ArgumentParser(
            prog=self.prog,
            description=self.description,
            epilog=TRAINING_HELP,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            usage=self.usage,
        )
        add_options(parser, self.groups)
        return parser

    def _run(self, arguments: Sequence[str], console: Console) -> int:
        options, training = self.options, training_fields()
        values = self._values(arguments, options, training)
        for name, remedy in (
            ("model", f"Name a checkpoint: {self.example}."),
            ("data", "Name the training data with --data."),
            ("output", "Name the folder of the result with -o."),
        ):
            if name in self.needs and values.get(name) is None:
                raise ValueError(f"No {name} was given. {remedy}")
        quiet_libraries()
        if values.get("architecture") is not None:
            from loraprune.architectures import read_spec, register

            register(read_spec(values["architecture"]))
        self.work(
            Invocation(
                values=values,
                training={name: values[name] for name in training - set(options) if name in values},
                console=console,
                command=shlex.join(["loraprune", self.name, *arguments]),
            )
        )
        return 0

    def _values(self, arguments: Sequence[str], options: dict[str, Option], training: set[str]) -> dict[str, Any]:
        """Recipe and command line together; the command line wins.

        Raises:
            ValueError: a name is unknown (the nearest known one is suggested) or is set another way here; a recipe's
                value is not one that the option takes.
        """
        parser = full_parser(self.prog, self.groups)
        try:
            given = vars(parser.parse_args(arguments))
        except ArgumentError as error:
            near = suggestion(str(error), (*options, *training))
            raise ValueError(f"{error}{near} ({self.prog} --help lists the options)") from None
        recipe = read_recipe(given["config"]) if "config" in given else {}
        check_known(recipe, set(options) | training | {"model", "config"})
        values = {name: typed(name, value, parser) for name, value in recipe.items()} | given
        self.settle(values, given)
        for name, remedy in REMEDIES.items():
            if name in values:
                raise ValueError(f"--{name.replace('_', '-')} is not an option of this command. {remedy}")
        return values


def full_parser(prog: str, groups: Groups) -> argparse.ArgumentParser:
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


def training_fields() -> set[str]:
    """Names of the fields of SFTConfig that a user may set."""
    from dataclasses import fields

    from trl import SFTConfig

    return {field.name for field in fields(SFTConfig) if field.init}
