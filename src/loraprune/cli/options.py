"""Options of commands, for recipes and the command line: declarations, old names, and parsers of values."""

from __future__ import annotations

import argparse
import logging
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

logger = logging.getLogger("loraprune")


@dataclass(frozen=True)
class Option:
    """One option of a command.

    Attributes:
        name: key in a recipe file; the flag is the same with dashes.
        target: object that the option sets: ``run``, a configuration of the command, or the ``call`` itself.
        help: one line of help.
        extra: arguments for argparse.
        field: name of the field, if it differs.
        old: old name of the option, in :data:`OLD_OPTIONS`.
        optional: whether its value in a recipe may be null.
    """

    name: str
    target: str
    help: str
    extra: dict[str, Any]
    field: str | None = None
    old: str | None = None
    optional: bool = True

    @property
    def flag(self) -> str:
        """The flag as typed."""
        return "--" + self.name.replace("_", "-")


def option(
    name: str,
    target: str,
    help: str,
    *,
    field: str | None = None,
    old: str | None = None,
    optional: bool = True,
    **extra: Any,
) -> Option:
    """Make an option; ``extra`` holds arguments for argparse."""
    return Option(name, target, help, extra, field, old, optional)


SWITCH: dict[str, Any] = {"action": argparse.BooleanOptionalAction}


@dataclass(frozen=True)
class OldOption:
    """An option under its old name.

    Attributes:
        name: new name.
        extra: arguments of the old option for argparse.
        forward: conversion of its value to one of the new option.
    """

    name: str
    extra: Mapping[str, Any]
    forward: Callable[[Any], Any] = lambda value: value


OLD_OPTIONS = {
    "method": OldOption("criterion", {}),
    "refit": OldOption("repair", SWITCH, lambda on: "refit" if on else "none"),
    "refit_damping": OldOption("damping", {"type": float}),
    "head_rounding": OldOption("head_counts", {"choices": ("config", "any")}),
}
"""Options by old name. They work for one more version, with a warning that gives the new name."""


def old_names(options: Iterable[Option]) -> set[str]:
    """Return the old names of options."""
    return {option.old for option in options if option.old is not None}


def add_old_options(parser: argparse.ArgumentParser, names: Collection[str]) -> None:
    """Let a parser accept options under old names, hidden from help."""
    for old in sorted(names):
        parser.add_argument(
            f"--{old.replace('_', '-')}",
            dest=old,
            default=argparse.SUPPRESS,
            help=argparse.SUPPRESS,
            **OLD_OPTIONS[old].extra,
        )


def with_new_names(values: Mapping[str, Any], old_names: Collection[str]) -> dict[str, Any]:
    """Rename options given under old names, with a warning for each.

    Raises:
        ValueError: an option was given under both names.
    """
    found = dict(values)
    for old in sorted(found.keys() & set(old_names)):
        new = OLD_OPTIONS[old]
        before, now = (f"--{name.replace('_', '-')}" for name in (old, new.name))
        if new.name in found:
            raise ValueError(f"{before} is the old name of {now}; give one of them.")
        found[new.name] = new.forward(found.pop(old))
        logger.warning("%s is now called %s; the next version removes the old name.", before, now)
    return found


OptionGroups = Mapping[str, Iterable[Option]]
"""Options by title of their group."""

MODEL_HELP = "folder of a checkpoint, Hub name, or demo (the bundled model)"

SHAPES_HELP = "folder of a checkpoint, Hub name, config.json, demo (the bundled model), or a preset such as llama-2-7b"

OF_TRL = "training"
"""Target of the options that trl's configuration reads; our parsers know them for help only."""


def by_name(*groups: OptionGroups) -> dict[str, Option]:
    """Return the options of groups by name, without those that trl reads."""
    every = (option for some in groups for options in some.values() for option in options)
    return {option.name: option for option in every if option.target != OF_TRL}


def add_options(parser: argparse.ArgumentParser, groups: OptionGroups, *, training: bool = False) -> None:
    """Add every option to its group, without defaults, which would hide the values of a recipe.

    Args:
        parser: parser to add to.
        groups: options by title of their group.
        training: also add the options that trl reads, for help.
    """
    parser.add_argument("model", nargs="?", default=argparse.SUPPRESS, metavar="MODEL", help=MODEL_HELP)
    for title, options in groups.items():
        group = parser.add_argument_group(title)
        for option in options:
            if option.target != OF_TRL or training:
                add_option(group, option)
    add_old_options(parser, old_names(option for options in groups.values() for option in options))


def add_option(group: argparse._ActionsContainer, option: Option) -> None:
    """Add one option, without a default."""
    short = {"output": ["-o"], "quiet": ["-q"]}.get(option.name, [])
    help = option.help.replace("%", "%%")
    group.add_argument(*short, option.flag, dest=option.name, default=argparse.SUPPRESS, help=help, **option.extra)


def fields_of(options: Mapping[str, Option], values: Mapping[str, Any], target: str) -> dict[str, Any]:
    """Return the given values of one target, by field name."""
    return {
        option.field or name: values[name]
        for name, option in options.items()
        if option.target == target and values.get(name) is not None
    }


# Numbers as people type them: ``4.5B`` parameters.

_FACTORS = {"": 1.0, "K": 1e3, "M": 1e6, "B": 1e9, "G": 1e9, "T": 1e12}


def parameter_count(text: str | int | float) -> int:
    """Read ``4.5B``, ``350M``, ``120k`` or a plain number.

    Raises:
        argparse.ArgumentTypeError: ``text`` is none of these.
    """
    if isinstance(text, (int, float)):
        return int(text)
    digits, suffix = text.strip().replace("_", "").replace(",", ""), ""
    if digits and digits[-1].upper() in _FACTORS:
        digits, suffix = digits[:-1], digits[-1].upper()
    try:
        return round(float(digits) * _FACTORS[suffix])
    except (ValueError, OverflowError):
        raise argparse.ArgumentTypeError(f"{text!r} is not a parameter count; write 4.5B, 350M or 120000") from None


def text_or_number(text: str) -> str:
    """Return text that may be a number in a recipe: ``0.5`` or ``2:4``."""
    return text


def names(text: str) -> tuple[str, ...]:
    """Read ``heads,channels`` as a tuple; spaces do not matter."""
    found = tuple(part.strip() for part in text.split(",") if part.strip())
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r} is an empty list; name at least one, or leave the option out")
    return found


def numbers(text: str) -> tuple[float, ...]:
    """Read ``0.1,0.2`` as a tuple.

    Raises:
        argparse.ArgumentTypeError: a part is not a number.
    """
    try:
        return tuple(float(part) for part in names(text))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of numbers; write it like 0.1,0.2,0.5") from None


def indices(text: str) -> tuple[int | str, ...]:
    """Read ``0,1,-1`` as a tuple; ``4-7`` stands for 4 to 7, and a share such as ``10%`` stays text.

    Raises:
        argparse.ArgumentTypeError: a part is none of these.
    """
    found: list[int | str] = []
    for part in names(text):
        if re.search(r"\d{6}", part):
            raise argparse.ArgumentTypeError(
                f"{part!r} is a layer that no model has; count from 0, or backwards from -1"
            )
        span = re.fullmatch(r"(\d+)-(\d+)", part)
        if span is not None and int(span[1]) <= int(span[2]):
            found += range(int(span[1]), int(span[2]) + 1)
        elif re.fullmatch(r"-?\d+", part):
            found.append(int(part))
        elif re.fullmatch(r"\d+(\.\d+)?%", part):
            found.append(part)
        else:
            raise argparse.ArgumentTypeError(f"{text!r} is not a list of layers; write it like 0,1,-1 or 0-3 or 10%")
    return tuple(found)
