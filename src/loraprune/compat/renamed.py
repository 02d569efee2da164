"""Keywords and attributes under old names: they work for one more version, and each use warns with the new name."""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, TypeVar

_Class = TypeVar("_Class", bound=type)
_Function = TypeVar("_Function", bound=Callable[..., Any])


def _same(value: Any) -> Any:
    return value


@dataclass(frozen=True)
class Renamed:
    """A new name, with conversions between old and new values.

    Attributes:
        name: the new name.
        forward: conversion of a value from the old name to the new name.
        back: reverse of ``forward``.
    """

    name: str
    forward: Callable[[Any], Any] = _same
    back: Callable[[Any], Any] = _same


def translated(values: Mapping[str, Any], renamed: Mapping[str, Renamed]) -> dict[str, Any]:
    """Replace old names with new ones; a value already under the new name is overwritten."""
    found = dict(values)
    for old, new in renamed.items():
        if old in found:
            found[new.name] = new.forward(found.pop(old))
    return found


def under_old_names(values: Mapping[str, Any], renamed: Mapping[str, Renamed]) -> dict[str, Any]:
    """Replace new names with old ones: the reverse of :func:`translated`, in the order of ``values``."""
    by_new = {new.name: (old, new) for old, new in renamed.items()}
    return {
        by_new[name][0] if name in by_new else name: by_new[name][1].back(value) if name in by_new else value
        for name, value in values.items()
    }


def _warn(owner: str, old: str, new: Renamed) -> None:
    """Warn at the line of the user's code that used the old name, outside this package and the standard library."""
    level, frame = 1, inspect.currentframe()
    while frame is not None and frame.f_globals.get("__name__", "").split(".")[0] in (
        "loraprune",
        "dataclasses",
        "copy",
    ):
        level, frame = level + 1, frame.f_back
    warnings.warn(
        f"{owner}: {old!r} is now called {new.name!r}; the next version removes the old name.",
        FutureWarning,
        stacklevel=level,
    )


def renamed_fields(**renamed: Renamed) -> Callable[[_Class], _Class]:
    """Let a dataclass accept and return fields under their old names.

    Raises:
        TypeError: at construction, if both names of a field are given with different values.
    """

    def decorate(cls: _Class) -> _Class:
        original: Any = cls.__init__  # type: ignore[misc]
        names = {field.name for field in fields(cls) if field.init}

        @functools.wraps(original)
        def with_old_names(self: Any, *args: Any, **values: Any) -> None:
            # `dataclasses.replace` passes the present value of every field along with the changes.
            is_copy = names <= values.keys()
            for old, new in renamed.items():
                if old not in values:
                    continue
                _warn(cls.__name__, old, new)
                value = new.forward(values.pop(old))
                if not is_copy and values.get(new.name, value) != value:
                    raise TypeError(f"{cls.__name__}: {old!r} is the old name of {new.name!r}; give one of them.")
                values[new.name] = value
            original(self, *args, **values)

        cls.__init__ = with_old_names  # type: ignore[misc]
        for old, new in renamed.items():
            setattr(cls, old, _old_attribute(cls.__name__, old, new))
        return cls

    return decorate


def _old_attribute(owner: str, old: str, new: Renamed) -> property:
    def read(self: Any) -> Any:
        _warn(owner, old, new)
        return new.back(getattr(self, new.name))

    read.__doc__ = f"Old name of :attr:`{new.name}`."
    return property(read)


def renamed_keywords(**renamed: str) -> Callable[[_Function], _Function]:
    """Let a function accept keyword arguments under their old names.

    Raises:
        TypeError: at the call, if both names of an argument are given.
    """

    def decorate(function: _Function) -> _Function:
        name = function.__name__

        @functools.wraps(function)
        def with_old_names(*args: Any, **values: Any) -> Any:
            for old, new in renamed.items():
                if old not in values:
                    continue
                if new in values:
                    raise TypeError(f"{name}: {old!r} is the old name of {new!r}; give one of them.")
                _warn(f"{name}()", old, Renamed(new))
                values[new] = values.pop(old)
            return function(*args, **values)

        with_old_names.__signature__ = inspect.signature(function)  # type: ignore[attr-defined]
        return with_old_names  # type: ignore[return-value]

    return decorate
