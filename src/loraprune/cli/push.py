"""``loraprune push``: upload of a finished result to the Hub."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from loraprune.cli.console import open_console, report_errors, results_console
from loraprune.cli.parsing import Parser, help_shown, parsed
from loraprune.display.console import print_line

if TYPE_CHECKING:
    from loraprune.checkpoint.publish import HubTarget


def push_parser() -> Parser:
    """Make the parser of the command."""
    parser = Parser(
        "loraprune push",
        usage="loraprune push OUT NAME [options]",
        description="Upload a result to the Hugging Face Hub in one commit. The login is that of HF_TOKEN or "
        "`hf auth login`.",
        epilog="examples:\n  loraprune push pruned me/my-model --private\n",
    )
    parser.add_argument("output", metavar="OUT", type=Path, help="folder of a result, or an exported file")
    parser.add_argument("push_to_hub", metavar="NAME", help="OWNER/NAME on the Hub, or a NAME of your own")
    add_target(parser.add_argument_group("hub"))
    return parser


def add_target(group: argparse._ArgumentGroup) -> None:
    """Add the options of a repository on the Hub, other than its name."""
    group.add_argument(
        "--private",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="make the repository on the Hub private (default: as the account's settings say)",
    )
    group.add_argument("--hub-revision", metavar="BRANCH", help="branch on the Hub to push to (default: main)")


def push_command(arguments: Sequence[str]) -> int:
    """Run the command."""
    parser = push_parser()
    shown = help_shown(parser, arguments)
    if shown is not None:
        return shown
    console = open_console()
    return report_errors(console, lambda: _run(parsed(parser, arguments)))


def target_of(options: argparse.Namespace) -> HubTarget:
    """Return the target repository after checks that a push can work.

    Raises:
        ValueError: a push cannot work.
    """
    from loraprune.checkpoint.publish import HubTarget

    target = HubTarget(name=options.push_to_hub, private=options.private, revision=options.hub_revision)
    target.check()
    return target


def push_now(target: HubTarget, path: Path, card: Path | None = None) -> None:
    """Push, and print the address.

    Args:
        target: repository to push to.
        path: folder or file to push.
        card: card of the checkpoint that a file was made from; None takes the one beside the file.

    Raises:
        WriteError: the push failed; the message says how to push again.
    """
    from loraprune.record.places import WriteError

    try:
        address = target.push(path, card=card)
    except WriteError as error:
        raise WriteError(f"{error} Push it again: {target.command(path)}") from error
    print_line(results_console(), f"On the Hub: {address}")


def _run(options: argparse.Namespace) -> int:
    path: Path = options.output
    if not path.exists():
        raise ValueError(f"{path} does not exist. Name the folder or the file of a result.")
    if path.is_dir() and not any((path / name).is_file() for name in ("config.json", "semi_structured.json")):
        raise ValueError(f"{path} holds no model: it has no config.json. Name the folder of a result.")
    push_now(target_of(options), path)
    return 0
