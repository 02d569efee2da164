"""Conversion of plain values, as YAML holds them, to the objects of the vocabulary, with errors that name the place."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

TODO = "TODO"
"""Placeholder in a draft for values that its author has to decide."""

Read = Callable[[str, Any], Any]
"""Reads a value. Arguments: the place of the value in the file, for errors, and the value."""

_T = TypeVar("_T")


class DescriptionError(ValueError):
    """A description is invalid; the message names the file, the place in it, and what is allowed there."""


def build(
    made: type[_T], place: str, value: object, own: Mapping[type, Mapping[str, Read]], also: Sequence[str] = ()
) -> _T:
    """Build one object of the vocabulary.

    Args:
        made: its class.
        place: place in the file, for errors.
        value: its fields by name.
        own: readers of fields whose short forms do not follow from their types, by class and name.
        also: further keys to list as allowed.
    """
    known = {item.name: item for item in fields(made)}  # type: ignore[arg-type]
    values = mapping(place or "the description", value)
    for key in values:
        if key not in known:
            allowed = ", ".join([*known, *also])
            raise DescriptionError(f"unknown key {key!r}{f' in {place}' if place else ''}; allowed: {allowed}.")
    needed = [name for name, item in known.items() if item.default is MISSING and item.default_factory is MISSING]
    for name in needed:
        if name not in values:
            raise DescriptionError(f"{place or 'the description'} lacks {name!r}.")
    dot, types, readers = f"{place}." if place else "", get_type_hints(made), own.get(made, {})
    read = {key: readers[key] if key in readers else _reader(types[key], own) for key in values}
    return made(**{key: read[key](f"{dot}{key}", said) for key, said in values.items()})


def _reader(kind: Any, own: Mapping[type, Mapping[str, Read]]) -> Read:
    """Reader for values of a type: plain, one of several words, a list, a mapping, an object of the vocabulary."""
    if isinstance(kind, type) and is_dataclass(kind):
        return lambda place, value: build(kind, place, value, own)
    inner = get_args(kind)
    if type(None) in inner:
        read = _reader(inner[0], own)
        return lambda place, value: None if value is None else read(place, value)
    if get_origin(kind) is tuple:
        return each(_reader(inner[0], own))
    if get_origin(kind) is Literal:
        return one_of(kind)
    return {bool: switch, int: number, str: text}.get(kind, mapping)


def text(place: str, value: object) -> str:
    """Read a text other than TODO."""
    if not isinstance(value, str):
        raise DescriptionError(f"{place} must be a text, not {value!r}.")
    if value == TODO:
        raise DescriptionError(f"{place} still says {TODO}.")
    return value


def switch(place: str, value: object) -> bool:
    """Read true or false."""
    if not isinstance(value, bool):
        raise DescriptionError(f"{place} must be true or false, not {value!r}.")
    return value


def number(place: str, value: object) -> int:
    """Read a whole number."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise DescriptionError(f"{place} must be a whole number, not {value!r}.")
    return value


def mapping(place: str, value: object) -> Mapping[str, Any]:
    """Read a mapping of names to values."""
    if not isinstance(value, Mapping):
        raise DescriptionError(f"{place} must be a mapping of names to values, not {value!r}.")
    for key in value:
        if not isinstance(key, str):
            raise DescriptionError(f"{place} has the key {key!r}, which is not a text.")
    return value


def sequence(place: str, value: object) -> Sequence[Any]:
    """Read a list that is not empty."""
    if not isinstance(value, Sequence) or isinstance(value, str) or not value:
        raise DescriptionError(f"{place} must be a list that is not empty, not {value!r}.")
    return value


def each(read: Read) -> Read:
    """Return a reader of a list, whose values ``read`` reads."""
    return lambda place, value: tuple(read(f"{place}[{i}]", said) for i, said in enumerate(sequence(place, value)))


def one_of(literal: object) -> Read:
    """Return a reader of one of the texts that a ``Literal`` allows."""
    allowed: Collection[str] = get_args(literal)

    def read(place: str, value: object) -> str:
        if text(place, value) not in allowed:
            raise DescriptionError(f"{place} is {value!r}; allowed: {', '.join(allowed)}.")
        return str(value)

    return read
