"""``loraprune verify``: checks that a result is complete and loads."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from loraprune.checkpoint.names import check_no_preset, expanded
from loraprune.cli.console import FAILED, begin, open_console, report_errors, results_console
from loraprune.cli.parsing import Parser, help_shown, parsed
from loraprune.display.console import print_line


def verify_parser() -> Parser:
    """Make the parser of the command."""
    parser = Parser(
        "loraprune verify",
        usage="loraprune verify OUT [options]",
        description="Check a checkpoint: checksums in pruning.json, finite weights, shapes against the config, and a "
        "forward pass. Print one line for each check; the exit code is 1 if one fails.",
        epilog="examples:\n  loraprune verify pruned\n",
    )
    parser.add_argument("folder", metavar="OUT", type=Path, help="folder that loraprune or save_pretrained wrote")
    group = parser.add_argument_group("model")
    group.add_argument(
        "--trust-remote-code", action="store_true", help="run Python code that comes with the checkpoint"
    )
    return parser


def verify_command(arguments: Sequence[str]) -> int:
    """Run the command."""
    parser = verify_parser()
    shown = help_shown(parser, arguments)
    if shown is not None:
        return shown
    console = open_console()
    return report_errors(console, lambda: _run(parsed(parser, arguments)))


def _run(options: argparse.Namespace) -> int:
    check_no_preset(options.folder)
    begin("verify", options.folder)
    from loraprune.recipes.verify import verify

    facts = verify(Path(expanded(options.folder)), trust_remote_code=options.trust_remote_code)
    for fact in facts:
        print_line(
            results_console(), f"{fact.name + ':':14}{'ok' if fact.passed else 'FAILED'}, {fact.text}", indent=14
        )
    return 0 if all(fact.passed for fact in facts) else FAILED
