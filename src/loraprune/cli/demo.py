"""``loraprune demo``: the main job on the bundled model."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path

from loraprune.cli.console import open_console, quiet_libraries, report_errors, results_console
from loraprune.cli.terminal import CommandParser


def _parser() -> argparse.ArgumentParser:
    """The options of the command."""
    parser = CommandParser(
        prog="loraprune demo",
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
    options = _parser().parse_args(arguments)
    console = open_console(quiet=options.quiet)
    return report_errors(console, lambda: _run(options, console, list(arguments)))


def _run(options: argparse.Namespace, console, arguments: list[str]) -> int:  # type: ignore[no-untyped-def]
    from loraprune.cli.console import show_result
    from loraprune.cli.progress import TrainingProgress
    from loraprune.data.demo import demo_model
    from loraprune.pruning.config import PruningConfig
    from loraprune.recipes.demo import run_demo

    demo_model()
    PruningConfig(ratio=options.ratio)
    quiet_libraries()
    training = {"seed": options.seed} | ({"max_steps": options.max_steps} if options.max_steps else {})
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
