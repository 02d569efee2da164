"""Command options made from the fields of a configuration, which declare help, type and default."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from loraprune.cli.options import SWITCH, Option, indices, names, numbers, option, text_or_number
from loraprune.options.field import flat_name, is_option, kind_of, option_name, rule_of
from loraprune.options.flat import Flat, options_of

SEVERAL: dict[str, Any] = {"nargs": "+", "action": "extend"}
"""Arguments for argparse: several values, extended if the option is repeated."""

_TYPES: dict[str, dict[str, Any]] = {
    "float": {"type": float},
    "int": {"type": int},
    "bool": SWITCH,
    "Path": {"type": Path},
    "tuple[str, ...]": {"type": names},
    "tuple[int | str, ...]": {"type": indices},
    "tuple[float, ...]": {"type": numbers},
    "str | float": {"type": text_or_number},
    "int | str": {"type": text_or_number},
    "float | str": {"type": text_or_number},
    "Sequence[str]": {"nargs": "+"},
    "Data": SEVERAL,
}


def declared(
    config: type[Any],
    target: str,
    *names: str,
    usual: Any = None,
    old: Mapping[str, str] | None = None,
    has_default: bool = True,
) -> tuple[Option, ...]:
    """Make command options from the options of a configuration.

    Args:
        config: dataclass of options, or a :class:`~loraprune.options.flat.Flat`.
        target: target of the options (:class:`~loraprune.cli.options.Option`).
        names: flat names of the options, in the order of the help.
        usual: object with the defaults that help shows; None makes one.
        old: old names of options.
        has_default: whether the command uses the defaults, so that help shows them.
    """
    usual, found = config() if usual is None else usual, options_of_all(config)
    return tuple(
        option(
            name,
            target,
            _help(found[name], usual, name) if has_default else rule_of(found[name]).help,
            field=None if isinstance(usual, Flat) or found[name].name == name else found[name].name,
            old=(old or {}).get(name),
            optional=_is_optional(found[name]),
            **_TYPES.get(kind_of(found[name]), {}),
            **_choices(found[name]),
        )
        for name in names
    )


def options_of_all(config: type[Any]) -> dict[str, dataclasses.Field[Any]]:
    """Return the options of a configuration and of all its parts, by flat name."""
    found: dict[str, dataclasses.Field[Any]] = {}
    for part in getattr(config, "parts", {}).values():
        for kind in part.kinds.values():
            for name, field in options_of(kind).items():
                if name not in found or not rule_of(found[name]).help:
                    found[name] = field
    return found | {flat_name(field): field for field in dataclasses.fields(config) if is_option(field)}


def nested(kind: type[Any]) -> tuple[Option, ...]:
    """Make the options of a criterion with its own group: ``--compresso-warmup``."""
    return tuple(
        option(
            option_name(field, kind.name),
            kind.name,
            _help(field, kind(), field.name),
            field=field.name,
            optional=_is_optional(field),
            **_TYPES.get(kind_of(field), {}),
            **_choices(field),
        )
        for field in dataclasses.fields(kind)
        if is_option(field)
    )


def _is_optional(field: dataclasses.Field[Any]) -> bool:
    """Whether None is a valid value."""
    return str(field.type).endswith("| None")


def _choices(field: dataclasses.Field[Any]) -> dict[str, Any]:
    choices = rule_of(field).choices
    return {} if choices is None else {"choices": choices}


def _help(field: dataclasses.Field[Any], usual: Any, name: str) -> str:
    """The help of an option with its default. Help without a default means that a switch is off."""
    rule = rule_of(field)
    value = getattr(usual, name if isinstance(usual, Flat) else field.name)
    shown = rule.shown
    if shown is None and value is not None and value is not False:
        shown = _shown(value)
    return rule.help if shown is None else f"{rule.help} (default: {shown})"


def _shown(value: Any) -> str:
    if value is True:
        return "on"
    return f"{value:g}" if isinstance(value, float) else str(getattr(value, "name", value))
