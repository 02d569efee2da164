"""Parsing of command lines, with error messages that suggest a remedy."""

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

_WORDS = (
    (r"argument (?:\S+/)?([^\s/]+): ", r"\1: "),
    (r"invalid int value: (.*)", r"\1 is not a whole number"),
    (r"invalid float value: (.*)", r"\1 is not a number"),
    (r"^(\S+): expected (?:at least )?one argument$", r"\1 needs a value"),
    (r"invalid choice: (.*) \(choose from (.*)\)", r"\1 is not one of \2"),
)
"""What argparse writes, and what users read."""


class ArgumentError(Exception):
    """An error of a parser, with its message in words."""

    def __init__(self, message: str) -> None:
        for pattern, words in _WORDS:
            message = re.sub(pattern, words, message)
        super().__init__(message)


class Parser(argparse.ArgumentParser):
    """A parser with two levels of help, which raises errors instead of ending the process.

    Args:
        prog: words that call the command.
        usage: shortest call.
        description: description of the command.
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
        """Raise the message as an error."""
        raise ArgumentError(message)

    def format_help(self) -> str:
        """Return the help page without the rare groups; its last line says how to see them."""
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
    """``--help-all``: help with the rare groups."""

    def __call__(self, parser: argparse.ArgumentParser, *rest: object) -> NoReturn:
        assert isinstance(parser, Parser)
        parser.print_full_help()
        parser.exit()


def fill_paragraphs(text: str) -> str:
    """Wrap the paragraphs of a text to the width of a help page."""
    return "\n\n".join(textwrap.fill(" ".join(part.split()), page_width()) for part in text.split("\n\n"))


def help_shown(parser: Parser, arguments: Sequence[str], *, needs_arguments: bool = True) -> int | None:
    """Show help if the command line asks for it or is empty.

    Args:
        parser: parser of the command.
        arguments: command line after the command.
        needs_arguments: whether the command needs arguments.

    Returns:
        The exit code; None if the command has to run.
    """
    if "--help-all" in arguments:
        parser.print_full_help()
        return 0
    if "-h" in arguments or "--help" in arguments:
        parser.print_help()
        return 0
    if not arguments and needs_arguments:
        parser.print_usage(sys.stderr)
        print(f"error: arguments are missing ({parser.prog} --help lists the options)", file=sys.stderr)
        return 2
    return None


def with_dashes(argument: str) -> str:
    """Return ``--lora_r`` as ``--lora-r``: options may be written both ways."""
    name, equals, value = argument.partition("=")
    return name.replace("_", "-") + equals + value if name.startswith("--") else argument


def parsed(parser: Parser, arguments: Sequence[str]) -> argparse.Namespace:
    """Parse a command line.

    Raises:
        ValueError: the command line is not valid; the message suggests the nearest option.
    """
    arguments = [with_dashes(argument) for argument in arguments]
    flags = flags_of(parser)
    try:
        check_dashes(arguments, flags)
        return parser.parse_args(arguments)
    except ArgumentError as error:
        raise ValueError(complaint(str(error), parser.prog, flags, parser.usage)) from None


def models_in(arguments: Sequence[str]) -> Sequence[str]:
    """Return the words before the options of a command line, which name models."""
    return tuple(itertools.takewhile(lambda word: not word.startswith("-"), arguments))


def flags_of(parser: argparse.ArgumentParser) -> list[str]:
    """Return the long options of a parser, as typed."""
    return [flag for flag in parser._option_string_actions if flag.startswith("--") and "_" not in flag]


def check_dashes(arguments: Iterable[str], flags: Sequence[str]) -> None:
    """Reject long options with one dash: the parser would read ``-overwrite`` as ``-o verwrite``.

    Raises:
        ArgumentError: there is one.
    """
    for argument in arguments:
        name = argument.partition("=")[0]
        if not name.startswith("--") and len(name) > 2 and f"-{name}" in flags:
            raise ArgumentError(f"{name} has one dash; write -{name}")


def complaint(message: str, prog: str, flags: Sequence[str], usage: str | None = None) -> str:
    """Return a parser's message with a remedy: the nearest option, or the command that has it.

    Args:
        message: message of the parser.
        prog: words that call the command.
        flags: options of the command.
        usage: shortest call.
    """
    hint = f"; {usage}" if usage is not None and "arguments are required" in message else suggestion(message, flags)
    return f"{message}{hint} ({prog} --help lists the options)"


def suggestion(message: str, flags: Sequence[str]) -> str:
    """Return a suggestion for an unknown option or choice, as the end of a message."""
    choice = re.search(r"'(.*)' is not one of (.*)", message)
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
    """Return a sentence with the commands that have an option; empty if none has it."""
    from loraprune.cli.main import COMMANDS

    owners = [command for command in COMMANDS if flag in flags_of(parser_of(command))]
    if not owners:
        return ""
    *first, last = owners
    return f"{flag} is an option of loraprune {', '.join(first)}{' and ' if first else ''}{last}"


def parser_of(command: str) -> Parser:
    """Return the parser of a command that shows its help."""
    name = command.replace("-", "_")
    parser: Parser = getattr(import_module(f"loraprune.cli.{name}"), f"{name}_parser")()
    return parser
