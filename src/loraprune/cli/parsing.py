"""Command lines as parsers read them, and what is said of those that they do not understand."""

from __future__ import annotations

import argparse
import itertools
import re
import sys
import textwrap
from collections.abc import Iterable, Sequence
from importlib import import_module
from typing import NoReturn

from loraprune.cli.help_format import HelpFormatter, page_width
from loraprune.options.near import near_names


class ArgumentError(Exception):
    """Carries a parser's complaint."""


class Parser(argparse.ArgumentParser):
    """A parser whose help starts with what is used most, and whose complaints can be put in our words.

    Args:
        prog: the words that call the command.
        usage: the shortest way to call it.
        description: what it does.
        epilog: examples, printed last.

    Attributes:
        rare: titles of groups that only ``--help-all`` shows.
    """

    def __init__(
        self, prog: str, *, usage: str | None = None, description: str | None = None, epilog: str | None = None
    ) -> None:
        super().__init__(
            prog=prog,
            usage=usage,
            description=description and fill_paragraphs(description),
            epilog=epilog,
            formatter_class=HelpFormatter,
            allow_abbrev=False,
            add_help=False,
        )
        self.rare: set[str] = set()
        self._everything = False
        self._positionals.title = "arguments"
        self.add_argument("-h", "--help", action="help", help=argparse.SUPPRESS)
        self.add_argument("--help-all", action=_HelpAll, nargs=0, default=argparse.SUPPRESS, help=argparse.SUPPRESS)

    def error(self, message: str) -> NoReturn:
        """Complain."""
        raise ArgumentError(message)

    def format_help(self) -> str:
        """The help page: without the rare groups, and with a last line that says how to see them."""
        groups = self._action_groups
        hidden = [group for group in groups if group.title in self.rare and not self._everything]
        self._action_groups = [group for group in groups if group not in hidden]
        try:
            page = super().format_help()
        finally:
            self._action_groups = groups
        options = sum(action.help != argparse.SUPPRESS for group in hidden for action in group._group_actions)
        more = f"{options} more option{'s' if options > 1 else ''}"
        return page + (f"\n{self.prog} --help-all shows {more}.\n" if options else "")

    def print_full_help(self) -> None:
        """Print the help page with every group."""
        self._everything = True
        self.print_help()


class _HelpAll(argparse.Action):
    """``--help-all``: help with the rare groups, too."""

    def __call__(self, parser: argparse.ArgumentParser, *rest: object) -> NoReturn:
        assert isinstance(parser, Parser)
        parser.print_full_help()
        parser.exit()


def fill_paragraphs(text: str) -> str:
    """A text whose paragraphs are lines of the width of a help page."""
    return "\n\n".join(textwrap.fill(" ".join(part.split()), page_width()) for part in text.split("\n\n"))


def help_shown(parser: Parser, arguments: Sequence[str], *, needs_arguments: bool = True) -> int | None:
    """Answer a command line that asks for help, or that is empty.

    Args:
        parser: of the command.
        arguments: the command line after the command.
        needs_arguments: whether the command does nothing without any.

    Returns:
        The exit code; None where the command is to run.
    """
    if "--help-all" in arguments:
        parser.print_full_help()
        return 0
    if "-h" in arguments or "--help" in arguments:
        parser.print_help()
        return 0
    if not arguments and needs_arguments:
        parser.print_usage(sys.stderr)
        print(f"error: nothing was given ({parser.prog} --help lists the options)", file=sys.stderr)
        return 2
    return None


def with_dashes(argument: str) -> str:
    """``--lora_r`` as ``--lora-r``: training options are understood both ways, and so are ours."""
    name, equals, value = argument.partition("=")
    return name.replace("_", "-") + equals + value if name.startswith("--") else argument


def parsed(parser: Parser, arguments: Sequence[str]) -> argparse.Namespace:
    """What a command line says.

    Raises:
        ValueError: the parser does not understand it; the message says what comes nearest.
    """
    arguments = [with_dashes(argument) for argument in arguments]
    flags = flags_of(parser)
    try:
        check_dashes(arguments, flags)
        return parser.parse_args(arguments)
    except ArgumentError as error:
        raise ValueError(complaint(str(error), parser.prog, flags, parser.usage)) from None


def models_in(arguments: Sequence[str]) -> Sequence[str]:
    """What stands before the options of a command line: the names of models."""
    return tuple(itertools.takewhile(lambda word: not word.startswith("-"), arguments))


def flags_of(parser: argparse.ArgumentParser) -> list[str]:
    """The long options of a parser, as typed."""
    return [flag for flag in parser._option_string_actions if flag.startswith("--") and "_" not in flag]


def check_dashes(arguments: Iterable[str], flags: Sequence[str]) -> None:
    """Refuse long options with one dash: ``-overwrite`` would be read as ``-o verwrite``.

    Raises:
        ArgumentError: there is one.
    """
    for argument in arguments:
        name = argument.partition("=")[0]
        if not name.startswith("--") and len(name) > 2 and f"-{name}" in flags:
            raise ArgumentError(f"{name} has one dash; say -{name}")


def complaint(message: str, prog: str, flags: Sequence[str], usage: str | None = None) -> str:
    """A parser's complaint with what helps: the option that comes nearest, or the command that has it.

    Args:
        message: of the parser.
        prog: the words that call the command.
        flags: its options.
        usage: the shortest way to call it.
    """
    hint = f"; {usage}" if usage is not None and "arguments are required" in message else suggestion(message, flags)
    return f"{message}{hint} ({prog} --help lists the options)"


def suggestion(message: str, flags: Sequence[str]) -> str:
    """What to say of an option that a parser does not know."""
    choice = re.search(r"invalid choice: '(.*)' \(choose from (.*)\)", message)
    if choice is not None:
        near = near_names(choice[1], [name.strip("' ") for name in choice[2].split(",")])
        return f"; did you mean {near[0]}?" if near else ""
    marker = "unrecognized arguments: "
    if marker not in message:
        return ""
    unknown = message.partition(marker)[2].split()[0].partition("=")[0].replace("_", "-")
    if not unknown.startswith("-"):
        return "; put quotes around a value that has spaces"
    flag = "--" + unknown.lstrip("-")
    owners = owners_of(flag)
    if owners:
        return f"; {owners}"
    near = near_names(flag, flags)
    return f"; did you mean {near[0]}?" if near else ""


def owners_of(flag: str) -> str:
    """The commands that have an option, in words; empty where none has it."""
    from loraprune.cli.main import COMMANDS

    owners = [command for command in COMMANDS if flag in flags_of(parser_of(command))]
    if not owners:
        return ""
    *first, last = owners
    return f"{flag} is an option of loraprune {', '.join(first)}{' and ' if first else ''}{last}"


def parser_of(command: str) -> Parser:
    """The parser of a command, as its help shows it."""
    name = command.replace("-", "_")
    parser: Parser = getattr(import_module(f"loraprune.cli.{name}"), f"{name}_parser")()
    return parser
