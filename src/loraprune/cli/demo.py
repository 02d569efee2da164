"""``loraprune demo``: the main job on the bundled model."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path

from loraprune.cli.console import open_console, quiet_libraries, report_errors, results_console
from loraprune.cli.parsing import Parser, parsed


def demo_parser() -> Parser:
    """The options of the command."""
    parser = Parser(
        prog="loraprune demo",
        usage="loraprune demo [options]",
        description="Prune the bundled model to half its heads and channels while LoRA tunes it on the standard "
        "library's text, and show what that did. No network, no GPU, a few minutes.",
    )
    parser.add_argument("-o", "--output", type=Path, default=Path("loraprune-demo"), help="default: loraprune-demo")
    parser.add_argument("--ratio", type=float, default=0.5, help="share of heads and channels that goes (0.5)")
    parser.add_argument("--max-steps", type=int, default=None, help="optimizer steps (160)")
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("-q", "--quiet", action="store_true", help="results only")
    return parser


def demo_command(arguments: Sequence[str]) -> int:
    """Run the command."""
    console = open_console(quiet="-q" in arguments or "--quiet" in arguments)
    return report_errors(console, lambda: _run(parsed(demo_parser(), arguments), console, list(arguments)))


def _run(options: argparse.Namespace, console, arguments: list[str]) -> int:  # type: ignore[no-untyped-def]
    from loraprune.cli.console import show_result
    from loraprune.cli.progress import TrainingProgress
    from loraprune.data.demo import demo_model
    from loraprune.options.field import check_within
    from loraprune.recipes.demo import run_demo

    demo_model()
    check_within("--ratio", options.ratio, "(0, 1)", "the share of heads and channels that goes")
    if options.max_steps is not None:
        check_within("--max-steps", options.max_steps, "[1, 1000000]")
    quiet_libraries()
    training = {"seed": options.seed} | ({"max_steps": options.max_steps} if options.max_steps is not None else {})
    progress = TrainingProgress(console, quiet=options.quiet)
    try:
        result = run_demo(
            options.output,
            ratio=options.ratio,
            training=training,
            callbacks=[progress],
            command=shlex.join(["loraprune", "demo", *arguments]),
        )
    finally:
        progress.close()
    show_result(results_console(), result)
    return 0
