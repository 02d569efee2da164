"""Keywords and attributes under their old names: they work for one more version, and each use says the new one."""

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
    """A new name, and how values change with it.

    Attributes:
        name: the new name.
        forward: turns a value of the old name into one of the new name.
        back: the reverse of ``forward``.
    """

    name: str
    forward: Callable[[Any], Any] = _same
    back: Callable[[Any], Any] = _same


def translated(values: Mapping[str, Any], renamed: Mapping[str, Renamed]) -> dict[str, Any]:
    """Replace old names by new ones; a value under the new name is overwritten."""
    found = dict(values)
    for old, new in renamed.items():
        if old in found:
            found[new.name] = new.forward(found.pop(old))
    return found


def under_old_names(values: Mapping[str, Any], renamed: Mapping[str, Renamed]) -> dict[str, Any]:
    """The reverse of :func:`translated`, in the order of ``values``."""
    by_new = {new.name: (old, new) for old, new in renamed.items()}
    return {
        by_new[name][0] if name in by_new else name: by_new[name][1].back(value) if name in by_new else value
        for name, value in values.items()
    }


def _warn(owner: str, old: str, new: Renamed) -> None:
    """Warn at the line that used the old name, which is neither in this package nor in ``dataclasses.replace``."""
    level, frame = 1, inspect.currentframe()
    while frame is not None and frame.f_globals.get("__name__", "").split(".")[0] in (
        "loraprune",
        "dataclasses",
        "copy",
    ):
        level, frame = level + 1, frame.f_back
    warnings.warn(
        f"{owner}: {old!r} is now called {new.name!r}; the old name goes with the next version.",
        FutureWarning,
        stacklevel=level,
    )


def renamed_fields(**renamed: Renamed) -> Callable[[_Class], _Class]:
    """Let a dataclass take, and show, fields under their old names.

    Raises:
        TypeError: when an object is made with both names of a field, and they say different things.
    """

    def decorate(cls: _Class) -> _Class:
        original: Any = cls.__init__  # type: ignore[misc]
        names = {field.name for field in fields(cls) if field.init}

        @functools.wraps(original)
        def with_old_names(self: Any, *args: Any, **values: Any) -> None:
            # `dataclasses.replace` gives every field its present value beside the changes.
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

    read.__doc__ = f"The old name of :attr:`{new.name}`."
    return property(read)


def renamed_keywords(**renamed: str) -> Callable[[_Function], _Function]:
    """Let a function take keyword arguments under their old names.

    Raises:
        TypeError: when the function is called with both names of an argument.
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
