"""``loraprune demo``: pruning of the bundled model."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path

from loraprune.cli.console import begin, open_console, report_errors, results_console
from loraprune.cli.parsing import Parser, help_shown, parsed


def demo_parser() -> Parser:
    """Make the parser of the command."""
    parser = Parser(
        "loraprune demo",
        usage="loraprune demo [options]",
        description="Prune the bundled model to half its heads and channels during LoRA fine-tuning, on the text of "
        "Python's standard library, and show the result. It needs no network and no GPU, and takes a few minutes.",
    )
    most = parser.add_argument_group("most used")
    most.add_argument("-o", "--output", type=Path, default=Path("loraprune-demo"), metavar="OUT", help="folder for the "
                      "result (default: loraprune-demo)")  # fmt: skip
    most.add_argument("--ratio", type=float, default=0.5, help="share of the prunable parameters to remove, between 0 "
                      "and 1 (default: 0.5)")  # fmt: skip
    most.add_argument("--max-steps", type=int, help="optimizer steps (default: 160)")
    most.add_argument("--seed", type=int, default=42, help="random seed (default: 42)")
    most.add_argument("-q", "--quiet", action="store_true", help="print results only")
    return parser


def demo_command(arguments: Sequence[str]) -> int:
    """Run the command."""
    parser = demo_parser()
    shown = help_shown(parser, arguments, needs_arguments=False)
    if shown is not None:
        return shown
    console = open_console(quiet="-q" in arguments or "--quiet" in arguments)
    return report_errors(console, lambda: _run(parsed(parser, arguments), console, list(arguments)))


def _run(options: argparse.Namespace, console, arguments: list[str]) -> int:  # type: ignore[no-untyped-def]
    from loraprune.cli.console import show_result
    from loraprune.data.demo import demo_model
    from loraprune.options.field import check_within
    from loraprune.recipes.demo import run_demo

    demo_model()
    check_within("--ratio", options.ratio, "(0, 1)", "the share of heads and channels to remove")
    if options.max_steps is not None:
        check_within("--max-steps", options.max_steps, "[1, 1000000]")
    begin("demo")
    training = {"seed": options.seed} | ({"max_steps": options.max_steps} if options.max_steps is not None else {})
    result = run_demo(
        options.output,
        ratio=options.ratio,
        training=training,
        command=shlex.join(["loraprune", "demo", *arguments]),
        verbosity="warnings" if options.quiet else "progress",
    )
    show_result(results_console(), result)
    return 0
