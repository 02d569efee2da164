"""``loraprune verify``: whether a result is whole."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from loraprune.cli.console import FAILED, open_console, print_line, quiet_libraries, report_errors, results_console
from loraprune.cli.terminal import CommandParser


def _parser() -> argparse.ArgumentParser:
    """The options of the command."""
    parser = CommandParser(
        prog="loraprune verify",
        description="Say whether a checkpoint is whole: its weight files against the checksums in pruning.json, finite "
        "weights, shapes against the config, and a forward pass. One line a check; exit code 1 where one fails.",
    )
    parser.add_argument("folder", metavar="OUT", type=Path, help="folder that loraprune or save_pretrained wrote")
    parser.add_argument("--trust-remote-code", action="store_true", help="run code that the checkpoint brings (off)")
    return parser


def verify_command(arguments: Sequence[str]) -> int:
    """Run the command."""
    options = _parser().parse_args(arguments)
    console = open_console()
    return report_errors(console, lambda: _run(options))


def _run(options: argparse.Namespace) -> int:
    quiet_libraries()
    from loraprune.recipes.verify import verify

    facts = verify(options.folder, trust_remote_code=options.trust_remote_code)
    for fact in facts:
        print_line(results_console(), f"{fact.name + ':':14}{'ok' if fact.passed else 'FAILED'}, {fact.text}")
    return 0 if all(fact.passed for fact in facts) else FAILED
