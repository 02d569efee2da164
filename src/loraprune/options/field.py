"""An option as a dataclass field with help, type, range and choices, and checks of its values."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

from loraprune.options.near import did_you_mean

_RULE = "loraprune"

SEEDS = "[0, 4294967295]"
"""Range of seeds that every random generator accepts: 32 bits."""


@dataclass(frozen=True, kw_only=True)
class Rule:
    """Properties of an option other than its type and default.

    Attributes:
        help: one line for ``--help``.
        within: interval of numbers, such as ``"[0, 1)"`` or ``"[1, inf)"``.
        choices: allowed values of text.
        flat: name as a keyword, in recipes and on the command line, if it differs from the field's.
        shown: default as help shows it, if it differs from the value.
        why: reason for the range, added to the error message.
        idle: whether the option may be given even if nothing in use has it.
    """

    help: str = ""
    within: str | None = None
    choices: tuple[str, ...] | None = None
    flat: str | None = None
    shown: str | None = None
    why: str | None = None
    idle: bool = False


def setting(default: Any, help: str = "", **rule: Any) -> Any:
    """Declare a dataclass field as an option.

    Args:
        default: default value, or a callable that returns it.
        help: one line for ``--help``.
        rule: other attributes of :class:`Rule`.
    """
    metadata = {_RULE: Rule(help=help, **rule)}
    if callable(default):
        return dataclasses.field(default_factory=default, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def rule_of(field: dataclasses.Field[Any]) -> Rule:
    """Return the rule of a field; an empty one if the field was not declared with :func:`setting`."""
    found: Rule = field.metadata.get(_RULE, Rule())
    return found


def is_option(field: dataclasses.Field[Any]) -> bool:
    """Whether a field was declared with :func:`setting`; other fields cannot be given flat."""
    return _RULE in field.metadata


def flat_name(field: dataclasses.Field[Any]) -> str:
    """Return the name of a field as a flat keyword."""
    return rule_of(field).flat or field.name


def option_name(field: dataclasses.Field[Any], of: str) -> str:
    """Return the name of a nested option on the command line and in recipes: ``compresso_warmup``."""
    return rule_of(field).flat or f"{of}_{field.name}"


def kind_of(field: dataclasses.Field[Any]) -> str:
    """Return the annotation of a field without ``| None``."""
    return str(field.type).removesuffix(" | None")


def check_choice(name: str, value: object, choices: Sequence[str]) -> None:
    """Check that the value of an option is one of its choices.

    Raises:
        ValueError: it is not; the message lists the choices.
    """
    if value not in choices:
        near = did_you_mean(str(value), choices)
        raise ValueError(f"{name} is {value!r}; choose one of {', '.join(choices)}.{near}")


def check_within(name: str, value: Any, interval: str, why: str | None = None) -> None:
    """Check that a number lies in an interval such as ``"(0, 1]"``; NaN lies in none.

    Raises:
        ValueError: it does not.
    """
    low, high = (float(bound) for bound in interval[1:-1].split(","))
    above = value >= low if interval[0] == "[" else value > low
    below = value <= high if interval[-1] == "]" else value < high
    if above and below:
        return
    if high != math.inf or not math.isfinite(value):
        where = f"lie in {interval}" if high != math.inf else "be a finite number"
    else:
        where = f"be at least {low:g}" if interval[0] == "[" else f"be above {low:g}"
    raise ValueError(f"{name} is {value}; it must {where}{f': {why}' if why else ''}.")


_WORDS = {
    "float": "a number",
    "int": "a whole number",
    "bool": "true or false",
    "str": "text",
    "tuple[str, ...]": "a list of names, such as [heads, channels]",
    "tuple[int | str, ...]": "a list of whole numbers and shares, such as [0, -1]",
}


def _fits(kind: str, value: Any) -> bool:
    """Whether a value has the type that an annotation names; NumPy numbers are numbers."""
    if kind in ("float", "int"):
        return isinstance(value, Real if kind == "float" else Integral) and not isinstance(value, bool)
    if kind.startswith("tuple"):
        wanted = (str,) if kind == "tuple[str, ...]" else (int, str)
        return isinstance(value, tuple) and all(type(item) in wanted for item in value)
    return isinstance(value, {"bool": bool, "str": str}[kind])


def check_fields(options: Any, of: str = "") -> None:
    """Check type, range and choices of every option of a dataclass. Lists are replaced by tuples, in place.

    Args:
        options: object whose fields were declared with :func:`setting`.
        of: prefix of names in messages, such as ``"compresso."``.

    Raises:
        ValueError: a value is not valid; the message names the option and the valid values.
    """
    for field in dataclasses.fields(options):
        rule, kind, value = rule_of(field), kind_of(field), getattr(options, field.name)
        if kind not in _WORDS and rule.choices is None:
            continue
        if value is None and str(field.type).endswith("| None"):
            continue
        name = f"{of}{flat_name(field)}"
        if isinstance(value, list):
            # JSON and YAML give lists, which compare unequal to tuples.
            value = tuple(value)
            object.__setattr__(options, field.name, value)
        if rule.choices is not None:
            check_choice(name, value, rule.choices)
        elif not _fits(kind, value):
            raise ValueError(f"{name} is {value!r}; it must be {_WORDS[kind]}.")
        elif rule.within is not None:
            check_within(name, value, rule.within, rule.why)
