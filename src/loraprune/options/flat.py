"""Configurations made of parts, with flat options: ``ratio=0.5`` for ``target=Target(ratio=0.5)``."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, ClassVar, TypeVar

from loraprune.options.field import check_fields, flat_name, is_option, rule_of
from loraprune.options.near import did_you_mean

_Config = TypeVar("_Config", bound="Flat")


@dataclass(frozen=True)
class Part:
    """One part of a configuration.

    Attributes:
        kinds: dataclasses of the part, by name; a part of one kind has one entry.
        adopt: function that makes a part from an object of another type; may raise ValueError.
        refused: names that are not allowed here, each with an error message.
    """

    kinds: Mapping[str, type[Any]]
    adopt: Callable[[Any], Any] | None = None
    refused: Mapping[str, str] = field(default_factory=dict)

    def names_of(self, flat: str) -> list[str]:
        """Return the kinds that have a flat option."""
        return [name for name, kind in self.kinds.items() if flat in options_of(kind)]


def options_of(kind: type[Any]) -> dict[str, dataclasses.Field[Any]]:
    """Return the options of a kind by flat name; empty for a nested kind, which takes a mapping under its name."""
    nested = getattr(kind, "nested", False)
    return {} if nested else {flat_name(field): field for field in fields(kind) if is_option(field)}


def default_of(field: dataclasses.Field[Any]) -> Any:
    """Return the default of a field."""
    return field.default_factory() if field.default_factory is not MISSING else field.default


class Flat:
    """Base of frozen dataclasses (``init=False``) whose :attr:`parts` are fields.

    The constructor takes parts as objects or by name (``criterion="taylor"``), and options of parts as flat keywords
    (``taylor_form="first"``). A flat option changes the part that is given with it, so that
    ``dataclasses.replace(config, ratio=0.3)`` works. Attributes can also be read flat.

    Raises:
        ValueError: a value is not valid, or an option belongs to another criterion or repair.
        TypeError: there is no such option.
    """

    parts: ClassVar[Mapping[str, Part]] = {}

    def __init__(self, **values: Any) -> None:
        values = self._with_defaults(values)
        for name, part in self.parts.items():
            object.__setattr__(self, name, _made(name, part, values.pop(name, None), values))
        self._refuse_strays(values)
        for own in fields(self):  # type: ignore[arg-type]
            if own.name not in self.parts:
                value = values.get(own.name, default_of(own))
                if value is None and not str(own.type).endswith("| None"):
                    value = default_of(own)
                object.__setattr__(self, own.name, value)
        check_fields(self)
        self._check()

    @classmethod
    def _with_defaults(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Add defaults that depend on the given values."""
        return values

    def _check(self) -> None:
        """Check combinations of options."""

    @classmethod
    def own_options(cls, values: Mapping[str, Any]) -> dict[str, Any]:
        """Drop flat values of criteria and repairs that are not in use; the files of runs hold all of them."""
        made = [_made(name, part, values.get(name), dict(values)) for name, part in cls.parts.items()]
        own = {field.name for field in fields(cls)} | {kind.name for kind in made if getattr(kind, "nested", False)}  # type: ignore[arg-type]
        own |= {flat for kind in made for flat in options_of(type(kind))}
        return {name: value for name, value in values.items() if name in own}

    def _refuse_strays(self, values: Mapping[str, Any]) -> None:
        for stray in self._strays(values):
            owners = {name: part.names_of(stray) for name, part in self.parts.items()}
            owners = {name: kinds for name, kinds in owners.items() if kinds}
            part, (kind, *_) = next(iter(owners.items()))
            owner = self.parts[part].kinds[kind]
            owner(**{options_of(owner)[stray].name: values[stray]})  # reports an invalid value first
            of = " and ".join(f"the {name} {_listed(kinds)}" for name, kinds in owners.items())
            now = " and ".join(f"the {name} is {getattr(self, name).name!r}" for name in owners)
            raise ValueError(f"{stray} is an option of {of}, but {now}. Leave it out.")

    def _strays(self, values: Mapping[str, Any]) -> Iterator[str]:
        """Yield the given flat options that belong to kinds not in use and are not at their defaults.

        Raises:
            TypeError: there is no such option.
            ValueError: options of a nested kind were given, but another kind is in use.
        """
        own = {field.name for field in fields(self)}  # type: ignore[arg-type]
        in_use = {flat for name in self.parts for flat in options_of(type(getattr(self, name)))}
        for name, value in values.items():
            if name in own or name in in_use:
                continue
            found = self._elsewhere(name)
            if found is MISSING:
                raise TypeError(f"{type(self).__name__} has no option {name!r}.")
            if dataclasses.is_dataclass(found):
                self._check_nested(name, value, found)
            elif value is not None and value != found and not self._is_idle(name):
                yield name

    @classmethod
    def _is_idle(cls, flat: str) -> bool:
        """Whether an option may be given even if no part in use has it."""
        kinds = (kind for part in cls.parts.values() for kind in part.kinds.values())
        return any(rule_of(options_of(kind)[flat]).idle for kind in kinds if flat in options_of(kind))

    def _check_nested(self, name: str, value: Any, default: Any) -> None:
        for part, of in self.parts.items():
            if name in of.kinds and getattr(self, part).name != name:
                given = type(default)(**value) if isinstance(value, Mapping) else value
                if given not in (None, default):
                    raise ValueError(
                        f"Options of {name} were given, but the {part} is {getattr(self, part).name!r}. Leave them "
                        f"out, or choose the {part} {name!r}."
                    )

    @classmethod
    def _elsewhere(cls, flat: str) -> Any:
        """The default of an option of any kind of any part; MISSING if there is no such option."""
        for part in cls.parts.values():
            for name, kind in part.kinds.items():
                if flat == name and getattr(kind, "nested", False):
                    return kind()
                if flat in options_of(kind):
                    return default_of(options_of(kind)[flat])
        return MISSING

    def __getattr__(self, name: str) -> Any:
        """Read an option of a part flat; the default if the option belongs to a kind that is not in use."""
        if not name.startswith("_"):
            for part, of in self.parts.items():
                now = self.__dict__.get(part)
                if now is None:
                    break
                if name in of.kinds and getattr(of.kinds[name], "nested", False):
                    return now if now.name == name else of.kinds[name]()
                if name in options_of(type(now)):
                    return getattr(now, options_of(type(now))[name].name)
            else:
                found = self._elsewhere(name)
                if found is not MISSING:
                    return found
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def changed(self: _Config, **values: Any) -> _Config:
        """Return a copy with changed options, given flat or as parts: ``config.changed(ratio=0.3)``."""
        return dataclasses.replace(self, **values)  # type: ignore[type-var]

    def options_off_default(self) -> dict[str, Any]:
        """Return the options of :meth:`flat` that are not at their defaults."""
        usual = type(self)(**self._usual()).flat()
        return {name: value for name, value in self.flat().items() if value != usual[name]}

    def _usual(self) -> dict[str, Any]:
        """The arguments that a configuration with all defaults still needs."""
        return {}

    @classmethod
    def flat_names(cls) -> list[str]:
        """Return the names of all flat options: those of every kind of every part, then the configuration's own."""
        found: dict[str, None] = {}
        for part_name, part in cls.parts.items():
            if len(part.kinds) > 1:
                found[part_name] = None
            for name, kind in part.kinds.items():
                found |= dict.fromkeys([name] if getattr(kind, "nested", False) else options_of(kind))
        own = [field.name for field in fields(cls) if field.name not in cls.parts]  # type: ignore[arg-type]
        return list(found | dict.fromkeys(own))

    def flat(self) -> dict[str, Any]:
        """Return all options as flat, plain values: a part by the name of its kind, a nested kind as a mapping."""
        values = {name: getattr(self, name) for name in self.flat_names()}
        return {
            name: value.name
            if name in self.parts
            else dataclasses.asdict(value)
            if dataclasses.is_dataclass(value) and not isinstance(value, type)
            else value
            for name, value in values.items()
        }


def _listed(names: list[str]) -> str:
    quoted = [repr(name) for name in names]
    return " or ".join(filter(None, (", ".join(quoted[:-1]), quoted[-1])))


def _made(what: str, part: Part, given: Any, flat: dict[str, Any]) -> Any:
    """Make a part from an object or a name, with its flat options."""
    if given is None or isinstance(given, str):
        kind = _kind(what, part, given)
        nested = flat.get(kind.name) if getattr(kind, "nested", False) else None
        if isinstance(nested, kind):
            return nested
        return kind(**(_changes(kind, flat) | dict(nested or {})))
    if isinstance(given, type) and given in part.kinds.values():
        raise ValueError(f"The {what} is the class {given.__name__}; give an instance, {given.__name__}(...).")
    if getattr(given, "name", None) in part.refused:
        raise ValueError(part.refused[given.name])
    if type(given) not in part.kinds.values():
        if part.adopt is None:
            wanted = " or ".join(kind.__name__ for kind in part.kinds.values())
            raise ValueError(f"{what} is {given!r}; give an instance of {wanted}.")
        given = part.adopt(given)
    changes = _changes(type(given), flat)
    return dataclasses.replace(given, **changes) if changes else given


def _kind(what: str, part: Part, name: str | None) -> type[Any]:
    if name is None:
        return next(iter(part.kinds.values()))
    if name in part.refused:
        raise ValueError(part.refused[name])
    if name not in part.kinds:
        near = did_you_mean(name, part.kinds)
        raise ValueError(f"There is no {what} {name!r}; choose one of {', '.join(part.kinds)}.{near}")
    return part.kinds[name]


def _changes(kind: type[Any], flat: Mapping[str, Any]) -> dict[str, Any]:
    """Flat options as fields of a kind; None is ignored for a field that cannot be None."""
    return {
        field.name: flat[name]
        for name, field in options_of(kind).items()
        if name in flat and (flat[name] is not None or str(field.type).endswith("| None"))
    }
