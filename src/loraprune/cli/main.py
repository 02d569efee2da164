"""``loraprune``: finds and runs the subcommand; imports nothing large, so that help is instant."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from importlib import import_module

from loraprune import __version__
from loraprune.processes.ranks import is_main, launched, leave
from loraprune.pruning.stopping import STOPPED, Stopping, exit_code, raise_stop

_GROUPS = {
    "prune": {
        "demo": "prune the bundled model in a few minutes on a CPU",
        "prune": "prune a model during LoRA fine-tuning",
        "oneshot": "prune a model on calibration data, without training",
        "recover": "tune a pruned or sparse model with LoRA",
    },
    "measure": {
        "eval": "measure perplexity, tasks, completions and accuracy",
        "bench": "measure speed, memory and operations",
        "compare": "compare quality, size and speed of several runs",
        "compare-criteria": "show how far pruning criteria agree on what to remove",
    },
    "look": {
        "inspect": "show what can be pruned in a model",
        "plan": "estimate size, memory and time of a pruned model",
        "verify": "check that a result is complete and loads",
        "report": "make the report of a finished run again",
        "env": "print versions and device, for a bug report",
    },
    "ship": {
        "export": "convert a checkpoint for llama.cpp, onnxruntime or vLLM",
        "push": "upload a result to the Hugging Face Hub",
    },
}

COMMANDS = {name: text for commands in _GROUPS.values() for name, text in commands.items()}
"""Commands with a short description, in the order of the help."""

IN_PARALLEL = ("prune", "recover", "oneshot", "eval", "compare-criteria")
"""Commands that torchrun and ``accelerate launch`` may start in several processes."""

_USAGE = """usage: loraprune COMMAND [options]

Structured pruning of large language models during LoRA fine-tuning.

{commands}
examples:
  loraprune plan llama-2-7b
  loraprune prune MODEL --data train.jsonl --ratio 0.5 -o pruned
  loraprune eval MODEL pruned --ppl wikitext2

loraprune COMMAND --help shows the options of a command.
"""


def usage() -> str:
    """Return the text of ``loraprune --help``."""
    width = max(map(len, COMMANDS))
    groups = (
        f"{title}:\n" + "".join(f"  {name:{width}}  {text}\n" for name, text in commands.items())
        for title, commands in _GROUPS.items()
    )
    return _USAGE.format(commands="\n".join(groups))


def _quiet_optional_libraries() -> None:
    """Hide messages of the libraries of the extra ``quantization`` at import; peft imports them by itself."""
    for name in ("torchao", "bitsandbytes", "torch.utils._pytree"):
        logging.getLogger(name).setLevel(logging.ERROR)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line; return the exit code (0 success, 1 failure, 2 wrong invocation, 130 and 143 stopped)."""
    if "_ARGCOMPLETE" in os.environ:
        import_module("loraprune.cli.completion").answer_shell()
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    with Stopping(raise_stop) as stopping:
        try:
            code = _run(arguments)
        except BaseException:  # a library may replace the signal's exception while it is imported
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
        from loraprune.options.near import did_you_mean  # late: signals are handled once this file is imported

        return _wrong(
            f"There is no command {command!r}; choose one of {', '.join(COMMANDS)}."
            f"{did_you_mean(command, COMMANDS)} (loraprune --help describes them)"
        )
    if launched() > 1 and command not in IN_PARALLEL:
        return _wrong(
            f"loraprune {command} runs in one process, but {launched()} were started. Start it without the launcher; "
            f"{', '.join(IN_PARALLEL[:-1])} and {IN_PARALLEL[-1]} can use several processes."
        )
    empty = _empty(rest)
    if empty is not None:
        return _wrong(f"{empty} is empty. Give it a value, or leave it out.")
    _quiet_optional_libraries()
    name = command.replace("-", "_")
    code: int = getattr(import_module(f"loraprune.cli.{name}"), f"{name}_command")(rest)
    leave()
    return code


def _wrong(message: str) -> int:
    """Print an error of the main process; return the exit code of a wrong invocation."""
    from loraprune.display.console import CleanConsole, print_line

    print_line(CleanConsole(stderr=True, quiet=not is_main()), f"error: {message}", "red")
    return 2


def _empty(arguments: Sequence[str]) -> str | None:
    """Name the empty argument of a command line, such as an unset shell variable; None if there is none."""
    for before, argument in zip(("", *arguments), arguments, strict=False):
        if argument.startswith("--") and argument.endswith("="):
            return argument[:-1]
        if not argument.strip():
            return before if before.startswith("-") else "An argument"
    return None


if __name__ == "__main__":
    sys.exit(main())
