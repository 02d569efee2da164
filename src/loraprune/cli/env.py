"""``loraprune env``: versions and device, for bug reports."""

from __future__ import annotations

import platform
from collections.abc import Sequence

from loraprune.cli.console import open_console, report_errors, results_console
from loraprune.cli.parsing import Parser, help_shown, parsed
from loraprune.display.console import print_line
from loraprune.record.numbers import counted
from loraprune.record.provenance import versions


def env_parser() -> Parser:
    """Make the parser of the command, which has no options."""
    return Parser(
        "loraprune env",
        usage="loraprune env",
        description="Print the versions of loraprune, Python and the libraries, and the device. Add this to a bug "
        "report.",
    )


def env_command(arguments: Sequence[str]) -> int:
    """Run the command."""
    parser = env_parser()
    shown = help_shown(parser, arguments, needs_arguments=False)
    if shown is not None:
        return shown
    console = open_console()
    return report_errors(console, lambda: _run(parser, arguments))


def _run(parser: Parser, arguments: Sequence[str]) -> int:
    parsed(parser, arguments)
    found = {**versions(("bitsandbytes", "torchao", "lm-eval")), "platform": platform.platform(), "device": _device()}
    width = max(map(len, found))
    for name, value in found.items():
        print_line(results_console(), f"{name:{width}}  {value}", whole=True)
    return 0


def _device() -> str:
    import torch

    if torch.cuda.is_available():
        count = torch.cuda.device_count()
        return f"{count} x {torch.cuda.get_device_name(0)}, CUDA {torch.version.cuda}"
    return f"CPU, {counted(torch.get_num_threads(), 'thread')}"
