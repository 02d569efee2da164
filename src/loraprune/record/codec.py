"""Dataclasses to JSON values and back, led by their type hints."""

from __future__ import annotations

import math
import types
from collections.abc import Mapping, Sequence, Set
from dataclasses import MISSING, Field, fields, is_dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any, TypeVar, Union, cast, get_args, get_origin, get_type_hints

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

_T = TypeVar("_T")

_SCALARS: dict[type, str] = {bool: "true or false", int: "a whole number", float: "a number", str: "a string"}


def encode(value: object) -> object:
    """Turn a value into one that strict JSON can hold.

    NaN and infinities become None, for JSON has no word for them; values of unknown types (paths, dtypes)
    become their text.
    """
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: encode(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Enum):
        return encode(value.value)
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): encode(item) for key, item in value.items()}
    if isinstance(value, Sequence | Set):
        return [encode(item) for item in value]
    return str(value)


def decode(kind: type[_T], value: object, where: str = "") -> _T:
    """Build an instance of the dataclass ``kind`` from parsed JSON.

    None where a plain ``float`` is expected becomes NaN, the inverse of `encode`. Fields that the class does not
    know are ignored, so that a file of a later version can be read.

    Args:
        kind: the dataclass.
        value: what a JSON parser returned.
        where: path of ``value`` inside the file, for messages.

    Raises:
        ValueError: a field is missing or has a value of another type; the message names its path.
    """
    if not isinstance(value, Mapping):
        raise ValueError(f"{where or 'The file'} should hold an object with fields, but holds {value!r:.60}.")
    hints = get_type_hints(kind)
    arguments: dict[str, object] = {}
    for field in fields(cast("type[DataclassInstance]", kind)):
        path = f"{where}.{field.name}" if where else field.name
        if field.name in value:
            arguments[field.name] = _decode(hints[field.name], value[field.name], path)
        elif _is_required(field):
            raise ValueError(f"{path} is missing. Was the file written by this program?")
    return kind(**arguments)


def _is_required(field: Field[Any]) -> bool:
    return field.default is MISSING and field.default_factory is MISSING


def _decode(hint: Any, value: object, where: str) -> object:
    """Decode ``value`` as the type hint says; the hints met here are those of the report's dataclasses."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        inner = next(argument for argument in arguments if argument is not type(None))
        return None if value is None else _decode(inner, value, where)
    if origin is tuple:
        return tuple(
            _decode(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(_expect(list, value, where, "a list"))
        )
    if origin is Mapping:
        items = _expect(dict, value, where, "an object").items()
        return {key: _decode(arguments[1], item, f"{where}.{key}") for key, item in items}
    if is_dataclass(hint):
        return decode(cast("type[object]", hint), value, where)
    if isinstance(hint, type) and issubclass(hint, Enum):
        return _decode_enum(hint, value, where)
    return value if hint is object else _decode_scalar(hint, value, where)


def _decode_scalar(hint: type, value: object, where: str) -> object:
    if hint is float and value is None:
        return math.nan
    if isinstance(value, bool) and hint is not bool:
        raise ValueError(f"{where} should be {_SCALARS[hint]}, but is {value!r}.")
    return value if hint is float and isinstance(value, int) else _expect(hint, value, where, _SCALARS[hint])


def _decode_enum(hint: type[Enum], value: object, where: str) -> Enum:
    try:
        return hint(value)
    except ValueError:
        known = ", ".join(repr(member.value) for member in hint)
        raise ValueError(f"{where} is {value!r}, which is none of {known}.") from None


def _expect(kind: type[_T], value: object, where: str, name: str) -> _T:
    if not isinstance(value, kind):
        raise ValueError(f"{where} should be {name}, but is {value!r:.60}.")
    return value
