"""Conversion of dataclasses to JSON values and back by type hints, and reading of JSON files that may be damaged."""

from __future__ import annotations

import json
import math
import types
from collections.abc import Mapping, Sequence, Set
from dataclasses import MISSING, fields, is_dataclass
from enum import Enum
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, Union, cast, get_args, get_origin, get_type_hints

import numpy as np

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

_T = TypeVar("_T")

LEFT_OUT = {"left out": True}
"""Field metadata: the file omits the key if the value is None, and ``null`` for a number means NaN."""

_SCALARS: dict[type, str] = {bool: "true or false", int: "a whole number", float: "a number", str: "a string"}


def read_json(path: Path) -> Any:
    """Return the content of a JSON file that may be damaged.

    Raises:
        OSError: the file cannot be read.
        ValueError: the path is not a regular file, or its content is not JSON in UTF-8.
    """
    if path.exists() and not path.is_file():
        raise ValueError("it is not a regular file")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def encode(value: object, *, finite: bool = True) -> Any:
    """Convert a value to plain values that strict JSON supports.

    NaN and infinities become None, because JSON cannot represent them, unless ``finite`` is False. NumPy numbers become
    Python numbers. Values of unknown types (paths, dtypes) become text.
    """
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, bool | int) or type(value) is str:
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) or not finite else None
    if isinstance(value, Enum):
        return encode(value.value, finite=finite)
    if is_dataclass(value) and not isinstance(value, type):
        items = ((entry, getattr(value, entry.name)) for entry in fields(value))
        return {
            entry.name: encode(item, finite=finite)
            for entry, item in items
            if item is not None or entry.metadata != LEFT_OUT
        }
    if isinstance(value, Mapping):
        return {str(key): encode(item, finite=finite) for key, item in value.items()}
    if isinstance(value, Sequence | Set) and not isinstance(value, str):
        return [encode(item, finite=finite) for item in value]
    return str(value)


def decode(kind: type[_T], value: object, where: str = "") -> _T:
    """Build an instance of the dataclass ``kind`` from plain values, the inverse of :func:`encode`.

    None becomes NaN if the field is a number. Unknown fields are ignored, so files of later versions can be read.

    Args:
        kind: the dataclass.
        value: value that a JSON parser returned.
        where: path of ``value`` inside the file, for messages.

    Raises:
        ValueError: a field is missing or has the wrong type; the message names its path.
    """
    given = _expect(dict, value, where or "The file", "an object with fields")
    arguments: dict[str, object] = {}
    for name, (hint, required, is_left_out) in _hints(cast("type[DataclassInstance]", kind)).items():
        path = f"{where}.{name}" if where else name
        if name in given:
            null_is_nan = is_left_out and given[name] is None and float in get_args(hint)
            arguments[name] = math.nan if null_is_nan else _decode(hint, given[name], path)
        elif required:
            raise ValueError(f"{path} is missing. Was the file written by this program?")
    return kind(**arguments)


@cache
def _hints(kind: type[DataclassInstance]) -> dict[str, tuple[Any, bool, bool]]:
    """For each field: its type, whether it has no default, and whether files omit it."""
    hints = get_type_hints(kind)
    return {
        entry.name: (
            hints[entry.name],
            entry.default is MISSING and entry.default_factory is MISSING,
            entry.metadata == LEFT_OUT,
        )
        for entry in fields(kind)
    }


def _decode(hint: Any, value: object, where: str) -> object:
    """Decode ``value`` by its type hint. Supports the hints that records and reports use."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        inner = next(argument for argument in arguments if argument is not type(None))
        return None if value is None else _decode(inner, value, where)
    if origin is tuple:
        items = _expect(list, value, where, "a list")
        return tuple(_decode(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(items))
    if origin is Mapping:
        pairs = _expect(dict, value, where, "an object").items()
        return {key: _decode(arguments[1], item, f"{where}.{key}") for key, item in pairs}
    if is_dataclass(hint):
        return decode(cast("type[object]", hint), value, where)
    if isinstance(hint, type) and issubclass(hint, Enum):
        return _decode_enum(hint, value, where)
    return value if hint in (object, Any) else _decode_scalar(hint, value, where)


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
        raise ValueError(f"{where} is {value!r}, but must be one of {known}.") from None


def _expect(kind: type[_T], value: object, where: str, name: str) -> _T:
    if not isinstance(value, kind):
        raise ValueError(f"{where} should be {name}, but is {value!r:.60}.")
    return value
