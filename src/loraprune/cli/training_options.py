"""Commands that train, with our options and those of trl, from recipes and the command line."""

from __future__ import annotations

import argparse
import itertools
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import Field, dataclass
from typing import TYPE_CHECKING, Any, NoReturn

from loraprune.checkpoint.names import check_no_preset
from loraprune.cli.console import begin, open_console, report_errors
from loraprune.cli.data_options import DATA_HELP, check_data, with_model
from loraprune.cli.options import (
    Option,
    OptionGroups,
    add_options,
    by_name,
    old_names,
    with_new_names,
)
from loraprune.cli.parsing import (
    ArgumentError,
    Parser,
    check_dashes,
    complaint,
    flags_of,
    help_shown,
    models_in,
    with_dashes,
)
from loraprune.cli.recipe_files import check_known, check_recipe_stays, read_recipe, typed
from loraprune.cli.training_names import training_names
from loraprune.tasks.training_rules import REMEDIES

if TYPE_CHECKING:
    from rich.console import Console


_FURTHER = "All other fields of trl's SFTConfig are options too, such as --optim NAME."

Settle = Callable[[dict[str, Any], dict[str, Any]], None]


def _as_they_are(values: dict[str, Any], given: dict[str, Any]) -> None:
    """Leave the values as they are."""


@dataclass(frozen=True, kw_only=True)
class Invocation:
    """Options of one call of a command.

    Attributes:
        values: values of our options, by name.
        training: values of the training options, by name.
        console: console for progress.
        command: command line as typed.
    """

    values: dict[str, Any]
    training: dict[str, Any]
    console: Console
    command: str

    @property
    def quiet(self) -> bool:
        """Whether to print results only."""
        return bool(self.values.get("quiet"))

    @property
    def verbosity(self) -> str:
        """Verbosity of the run, as the functions of ``loraprune.recipes`` take it."""
        return "warnings" if self.quiet else "progress"


@dataclass(frozen=True, kw_only=True)
class TrainingCommand:
    """A command that trains.

    Attributes:
        name: name as typed.
        description: description for the help page.
        usage: shortest call.
        example: example for the help page.
        groups: options by title of their group.
        rare: groups that only ``--help-all`` shows.
        work: function that runs the command.
        settle: function that resolves options that exclude each other, in its first argument; the second argument
            holds the values of the command line alone.
        check: function that checks the values by making the configurations.
        needs: options that must be given.
    """

    name: str
    description: str
    usage: str
    example: str
    groups: OptionGroups
    rare: OptionGroups
    work: Callable[[Invocation], None]
    settle: Settle = _as_they_are
    check: Callable[[dict[str, Any]], object] = lambda values: None
    needs: tuple[str, ...] = ("model", "data", "output")

    @property
    def prog(self) -> str:
        """Words that call the command."""
        return f"loraprune {self.name}"

    @property
    def options(self) -> dict[str, Option]:
        """Options by name, without those that trl reads."""
        return by_name(self.groups, self.rare)

    def main(self, arguments: Sequence[str]) -> int:
        """Run the command."""
        arguments = [with_dashes(argument) for argument in arguments]
        shown = help_shown(self.help_parser(), arguments)
        if shown is not None:
            return shown
        console = open_console(quiet="-q" in arguments or "--quiet" in arguments)
        return report_errors(
            console,
            lambda: self._run(arguments, console),
            less_memory="Use --gradient-checkpointing, a smaller --per-device-train-batch-size or --load-in-4bit; "
            "`loraprune plan MODEL` says what fits.",
        )

    def help_parser(self) -> Parser:
        """Make the parser that shows help: our options and the main ones of trl, without importing trl."""
        epilog = f"{DATA_HELP}\n{_FURTHER}\n\nexamples:\n  {self.example}\n"
        parser = Parser(self.prog, description=self.description, epilog=epilog, usage=self.usage)
        add_options(parser, {**self.groups, **self.rare}, training=True)
        parser.rare = set(self.rare)
        return parser

    def _run(self, arguments: Sequence[str], console: Console) -> int:
        given = self._check_own(arguments)
        models = models_in(arguments)
        for model in models:
            check_no_preset(model)
        check_data(given)
        begin(self.name, *models)
        options, training = self.options, training_fields()
        values = self._values(arguments, options, training)
        self._check_needed(values)
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

    def _check_own(self, arguments: Sequence[str]) -> dict[str, Any]:
        """Check our own options at once, before the import of trl, which takes seconds.

        Returns:
            The values of our options on the command line.

        Raises:
            ValueError: a value is not valid, or a required option is missing.
        """
        parser = Parser(self.prog)
        add_options(parser, {**self.groups, **self.rare})
        try:
            check_dashes(arguments, flags_of(parser))
            found, further = parser.parse_known_args(arguments)
        except ArgumentError as error:
            raise ValueError(complaint(str(error), self.prog, flags_of(parser))) from None
        # This parser does not know trl's options, so a value of one of them may look like the model.
        given = with_model({name: value for name, value in vars(found).items() if name != "model" or not further})
        self._check_further(further, flags_of(parser))
        if "config" not in given:
            self._check_needed(given, without=("model",) if further else ())
            old = old_names(self.options.values())
            if not old & given.keys():  # old names are translated later, with one warning
                values = dict(given)
                self.settle(values, given)
                self.check(values)
        return given

    def _check_further(self, further: Sequence[str], own: Sequence[str]) -> None:
        """Check the options that are not ours.

        Raises:
            ValueError: an option is not trl's either, or these commands do not take it.
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
            ("model", f"Name a checkpoint: {self.usage.removesuffix(' [options]')}."),
            ("data", "Name the training data with --data."),
            ("output", "Name the folder of the result with -o."),
        ):
            if name in self.needs and name not in without and values.get(name) is None:
                raise ValueError(f"The {name} is missing. {remedy}")

    def _values(
        self, arguments: Sequence[str], options: dict[str, Option], training: Mapping[str, Field[Any]]
    ) -> dict[str, Any]:
        """Merge recipe and command line; the command line wins.

        Raises:
            ValueError: an option is unknown (the message suggests the nearest one), these commands do not take it,
                or a recipe's value is not valid.
        """
        parser = full_parser(self.prog, {**self.groups, **self.rare})
        try:
            given = with_model(vars(parser.parse_args(arguments)))
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
    """Reject a training option that these commands do not take.

    Raises:
        ValueError: they do not take it; the message says what to do instead.
    """
    if name in REMEDIES:
        raise ValueError(f"--{name.replace('_', '-')} is not an option of this command. {REMEDIES[name]}")


def full_parser(prog: str, groups: OptionGroups) -> argparse.ArgumentParser:
    """Make the parser of our options and every field of SFTConfig, without defaults."""
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
    own = {item.name for group in groups.values() for item in group}
    switches = {field.name for field in fields(SFTConfig) if "bool" in str(field.type)} - own
    for action in parser._actions:
        action.default = argparse.SUPPRESS
        action.required = False
        if action.dest in switches and action.nargs is None and isinstance(action, argparse._StoreAction):
            # `bool | None`: without this, --bf16 would need a value
            action.nargs, action.const, action.type = "?", True, string_to_bool
    built: argparse.ArgumentParser = parser
    return built


def training_fields() -> dict[str, Field[Any]]:
    """Return the fields of SFTConfig that a user may set, by name."""
    from dataclasses import fields

    from trl import SFTConfig

    return {field.name: field for field in fields(SFTConfig) if field.init}
