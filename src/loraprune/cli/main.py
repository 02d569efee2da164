"""``loraprune``: finds the subcommand and hands over; imports nothing heavy, so that help is instant."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from importlib import import_module

from loraprune import __version__
from loraprune.processes.ranks import is_main, launched, leave
from loraprune.pruning.stopping import STOPPED, Stopping, exit_code, raise_stop

COMMANDS = {
    "demo": "prune the bundled model to half its heads and channels, in a few minutes on a CPU",
    "prune": "prune a checkpoint while LoRA tunes it",
    "recover": "tune a pruned or sparse checkpoint with LoRA; weights that are zero stay zero",
    "compare-criteria": "show how far criteria agree on which heads and channels go; nothing is removed",
    "oneshot": "prune a checkpoint without training: fewer heads and channels, or weights that are zero",
    "eval": "measure models: perplexity, tasks, completions, accuracy; results are kept in a file",
    "plan": "say what pruning will take and give, and which GPUs it fits, without loading weights",
    "inspect": "show what can be pruned in a model, without loading its weights",
    "bench": "measure speed, memory and operations of models that take turns",
    "report": "make the report of a finished run again, with what was measured of it since",
    "compare": "hold the quality of runs against parameters, latency and training time; the Pareto front is marked",
    "verify": "say whether a result is whole: checksums, shapes, finite weights, a forward pass",
    "export": "write a checkpoint for llama.cpp or onnxruntime, or its 2:4 weights in formats of their own",
}

IN_PARALLEL = ("prune", "recover", "oneshot", "eval", "compare-criteria")
"""Commands that torchrun and ``accelerate launch`` may start in several processes."""

USAGE = """usage: loraprune COMMAND [options]

Structured pruning of large language models while they are fine-tuned with LoRA.

commands:
{commands}

loraprune COMMAND --help shows the options of a command; loraprune --version the version.
"""


def usage() -> str:
    """The text of ``loraprune --help``."""
    width = max(map(len, COMMANDS))
    return USAGE.format(commands="\n".join(f"  {name:{width}}  {text}" for name, text in COMMANDS.items()))


def _quiet_optional_libraries() -> None:
    """Hide what libraries of the extra ``quantization`` say on being imported, which peft does unasked."""
    for name in ("torchao", "bitsandbytes", "torch.utils._pytree"):
        logging.getLogger(name).setLevel(logging.ERROR)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line; returns the exit code (0 fine, 1 failed, 2 wrong invocation, 130 and 143 stopped)."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    with Stopping(raise_stop) as stopping:
        try:
            code = _run(arguments)
        except BaseException:  # a library may make something else of what a signal raises while it is imported
            if stopping.number is None:
                raise
            print("Stopped.", file=sys.stderr)
            code = STOPPED
    return exit_code(stopping.number) if code == STOPPED else code


def _run(arguments: list[str]) -> int:
    if not arguments:
        print(usage(), end="", file=sys.stderr)
        return 2
    command, *rest = arguments
    if command in ("-h", "--help", "help"):
        print(usage(), end="")
        return 0
    if command in ("-V", "--version"):
        print(f"loraprune {__version__}")
        return 0
    if command not in COMMANDS:
        print(
            f"loraprune: there is no command {command!r}; choose one of {', '.join(COMMANDS)} "
            "(loraprune --help says what they do)",
            file=sys.stderr,
        )
        return 2
    if launched() > 1 and command not in IN_PARALLEL:
        if is_main():
            print(
                f"error: loraprune {command} works in one process, and {launched()} were started. Start it without the "
                f"launcher; {', '.join(IN_PARALLEL[:-1])} and {IN_PARALLEL[-1]} can share their work.",
                file=sys.stderr,
            )
        return 2
    empty = _empty(rest)
    if empty is not None:
        print(f"error: {empty} is empty. Give it a value, or leave it out.", file=sys.stderr)
        return 2
    _quiet_optional_libraries()
    name = command.replace("-", "_")
    code: int = getattr(import_module(f"loraprune.cli.{name}"), f"{name}_command")(rest)
    leave()
    return code


def _empty(arguments: Sequence[str]) -> str | None:
    """What is empty in a command line, as where a variable of the shell has no value; None where nothing is."""
    for before, argument in zip(("", *arguments), arguments, strict=False):
        if argument.startswith("--") and argument.endswith("="):
            return argument[:-1]
        if not argument.strip():
            return before if before.startswith("-") else "An argument"
    return None


if __name__ == "__main__":
    sys.exit(main())
