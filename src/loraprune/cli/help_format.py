"""The format of help pages: flags with short value names, defaults, and lines that fit the terminal."""

from __future__ import annotations

import argparse
import re
import shutil
from pathlib import Path
from typing import Any

from loraprune.cli.options import indices, names, numbers, parameter_count

WIDEST = 100
"""Largest width of a help page in columns; longer lines are hard to read."""

_BY_TYPE: dict[object, str] = {
    int: "N",
    float: "X",
    Path: "PATH",
    names: "NAMES",
    numbers: "X,X",
    indices: "LAYERS",
    parameter_count: "N",
}
_BY_NAME = {
    "data": "DATA",
    "eval_data": "DATA",
    "tokenizer": "MODEL",
    "image_processor": "MODEL",
    "teacher": "MODEL",
    "base": "MODEL",
    "output": "OUT",
    "prompt": "TEXT",
    "pruning_prompt": "TEXT",
    "target_size": "SIZE",
    "target_kv_cache": "SIZE",
    "widths": "WIDTHS",
    "sparsity": "X",
}

_ON = "(default: on"

_USAGE_PART = re.compile(r"\[(?:[^\[\]]|\[[^\[\]]*\])*\]|\([^()]*\)|-[\w-]+ [A-Z]+|\S+")
"""A part of a usage line that is not broken: brackets, an option with its value, or a word."""


def page_width() -> int:
    """Return the width of a help page in this terminal, in columns."""
    return min(shutil.get_terminal_size().columns, WIDEST) - 2


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Prints the flags of an option once, with a short name for its value."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=26, width=page_width())

    def _format_usage(self, usage: str | None, *rest: Any) -> str:
        if usage is None:
            return super()._format_usage(usage, *rest)
        lines = ["usage:"]
        for part in _USAGE_PART.findall(usage):
            if len(f"{lines[-1]} {part}") > self._width:
                lines.append(" " * len("usage:"))
            lines[-1] += f" {part}"
        return "\n".join(lines) + "\n\n"

    def _get_default_metavar_for_optional(self, action: argparse.Action) -> str:
        return _BY_NAME.get(action.dest, _BY_TYPE.get(action.type, "NAME"))

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if not action.option_strings:
            return super()._format_action_invocation(action)
        flags = list(action.option_strings)
        if isinstance(action, argparse.BooleanOptionalAction) and _ON not in (action.help or ""):
            flags = [flag for flag in flags if not flag.startswith("--no-")]  # only undoes a recipe's value
        if action.nargs == 0:
            return ", ".join(flags)
        return f"{', '.join(flags)} {self._format_args(action, self._get_default_metavar_for_optional(action))}"
