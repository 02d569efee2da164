"""Options of commands, declared once and grouped as they are used."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Option:
    """One option.

    Attributes:
        name: its key in a recipe file; the flag is the same with dashes.
        target: what it sets: a field of ``run``, of what the command configures, or the ``call`` itself.
        field: the field's name where it differs.
        help: one line.
        extra: for argparse.
    """

    name: str
    target: str
    help: str
    extra: dict[str, Any]
    field: str | None = None

    @property
    def flag(self) -> str:
        """As typed."""
        return "--" + self.name.replace("_", "-")


def option(name: str, target: str, help: str, *, field: str | None = None, **extra: Any) -> Option:
    """One option; ``extra`` is for argparse."""
    return Option(name, target, help, extra, field)


SWITCH: dict[str, Any] = {"action": argparse.BooleanOptionalAction}

Groups = Mapping[str, Iterable[Option]]
"""Options by the title of their group."""


def add_options(parser: argparse.ArgumentParser, groups: Groups) -> None:
    """Add every option, in its group, without defaults: what was not given must not hide a recipe's value."""
    parser.add_argument("model", nargs="?", default=argparse.SUPPRESS, help="a checkpoint's folder or its hub name")
    parser.add_argument("--config", default=argparse.SUPPRESS, type=Path, metavar="RECIPE.yaml",
                        help="recipe file, or the name of a published recipe: the same names as the options; options "
                        "given here win")  # fmt: skip
    for title, options in groups.items():
        group = parser.add_argument_group(title)
        for option in options:
            flags = [option.flag]
            if option.name in ("output", "quiet"):
                flags.insert(0, f"-{option.name[0]}")
            group.add_argument(
                *flags, dest=option.name, default=argparse.SUPPRESS, help=option.help.replace("%", "%%"), **option.extra
            )


def fields_of(options: Mapping[str, Option], values: Mapping[str, Any], target: str) -> dict[str, Any]:
    """The given values of one target, by field name."""
    return {
        option.field or name: values[name]
        for name, option in options.items()
        if option.target == target and values.get(name) is not None
    }
