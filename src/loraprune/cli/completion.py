"""Shell completion of commands, options, choices, and names of models and data.

The shell runs ``loraprune`` with the typed line in the environment, and argcomplete answers. This makes only the
parser of the command in that line, and imports nothing large.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterable

from loraprune.checkpoint.names import DEMO, PRESETS
from loraprune.cli.main import COMMANDS
from loraprune.cli.parsing import parser_of
from loraprune.cli.recipe_files import published
from loraprune.cli.training_names import training_names

_TRAIN = ("prune", "recover", "compare-criteria")


def answer_shell() -> None:
    """Answer the shell and end the process.

    Raises:
        SystemExit: argcomplete has answered, or is not installed.
    """
    try:
        import argcomplete
    except ImportError:
        raise SystemExit(1) from None
    argcomplete.autocomplete(parser_for(os.environ.get("COMP_LINE", "")), always_complete_options=False)


def parser_for(line: str) -> argparse.ArgumentParser:
    """Make a parser of all commands, with the options of the command in the line.

    Args:
        line: command line as typed so far.
    """
    words = line.split()
    parser = argparse.ArgumentParser(prog="loraprune")
    parser.add_argument("--version", action="store_true")
    commands = parser.add_subparsers()
    for name, text in COMMANDS.items():
        typed = len(words) > 1 and words[1] == name
        parents = [_with_names(name)] if typed else []
        commands.add_parser(name, help=text, parents=parents, add_help=False)
    return parser


def _with_names(command: str) -> argparse.ArgumentParser:
    """The parser of a command, with completers for names."""
    parser = parser_of(command)
    known = {flag for action in parser._actions for flag in action.option_strings}
    for name in sorted(training_names()) if command in _TRAIN else ():
        flag = f"--{name.replace('_', '-')}"
        if flag not in known:
            parser.add_argument(flag, help=argparse.SUPPRESS)
    shapes = list(PRESETS) if command in ("inspect", "plan") else []
    names = {"data": [DEMO], "eval_data": [DEMO], "config": published(), "model": [DEMO, *shapes], "models": [DEMO]}
    for action in parser._actions:
        if action.dest in names:
            action.completer = _completer(names[action.dest])  # type: ignore[attr-defined]
    return parser


def _completer(names: Iterable[str]) -> Callable[..., list[str]]:
    """A completer of names and files."""
    from argcomplete.completers import FilesCompleter

    def candidates(prefix: str, **context: object) -> list[str]:
        return [name for name in names if name.startswith(prefix)] + list(FilesCompleter()(prefix, **context))

    return candidates
