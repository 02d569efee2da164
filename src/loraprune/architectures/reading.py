"""A description of an architecture, read from YAML."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from loraprune.architectures.spec import (
    ArchitectureSpec,
    Axis,
    Count,
    DimensionSpec,
    MemberSpec,
    Number,
    RowUnit,
)
from loraprune.architectures.values import DescriptionError, Read, build, mapping, one_of, sequence, text


class _Loader(yaml.SafeLoader):
    """Rejects duplicate keys, of which YAML would silently use the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key.value!r} occurs twice", key.start_mark
                )
            if isinstance(key, yaml.ScalarNode):
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def read_spec(path: str | Path) -> ArchitectureSpec:
    """Read a description from a YAML file; docs/architectures.md shows the format.

    Raises:
        DescriptionError: there is no such file, or its content is invalid.
    """
    path = Path(path).expanduser()
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except (OSError, UnicodeDecodeError) as error:
        raise DescriptionError(f"The architecture {path} cannot be read: {error}.") from error
    except yaml.YAMLError as error:
        raise DescriptionError(f"The architecture {path} is not YAML: {' '.join(str(error).split())}.") from error
    try:
        return spec_from(values)
    except DescriptionError as error:
        raise DescriptionError(f"{path}: {error}") from error


def spec_from(values: object) -> ArchitectureSpec:
    """Build a description from plain values, as YAML holds them.

    Raises:
        DescriptionError: the values are invalid.
    """
    found = dict(mapping("the description", values))
    if "stacks" not in found and "blocks" in found:  # one stack, written without a list around it
        found["stacks"] = [{key: found.pop(key) for key in ("blocks", "name", "dimensions") if key in found}]
    return build(ArchitectureSpec, "", found, _OWN, also=("blocks", "name", "dimensions"))


def _members(place: str, value: object) -> tuple[MemberSpec, ...]:
    if isinstance(value, Mapping):
        named = mapping(place, value)
        return tuple(_member("output", f"{place}.{module}", module, said) for module, said in named.items())
    return tuple(_listed_member("output", f"{place}[{i}]", said) for i, said in enumerate(sequence(place, value)))


def _consumer(place: str, value: object) -> MemberSpec:
    return _listed_member("input", place, value)


def _listed_member(axis: Axis, place: str, value: object) -> MemberSpec:
    """Read one member: ``{module: q_proj, segments: query, ...}``, or short ``{q_proj: query}``."""
    found = dict(mapping(place, value))
    if "module" in found:
        return _member(axis, place, found.pop("module"), found)
    if len(found) != 1:
        raise DescriptionError(
            f"{place} must name one layer, as in `{{self_attn.o_proj: query}}` or `{{module: self_attn.o_proj, "
            "segments: query}`."
        )
    module, said = found.popitem()
    return _member(axis, f"{place}.{module}", module, said)


def _member(axis: Axis, place: str, module: object, value: object) -> MemberSpec:
    said = dict(value) if isinstance(value, Mapping) else {"segments": value}
    return build(MemberSpec, place, {"module": module, "axis": axis, **said}, _OWN)


def _segments(place: str, value: object) -> tuple[tuple[RowUnit, ...], ...]:
    """Read segments: ``query`` is one of one unit, ``[query, kv]`` two, ``[[query, kv]]`` one of two units."""
    unit = one_of(RowUnit)
    if isinstance(value, str):
        return ((unit(place, value),),)
    return tuple(
        (unit(place, segment),)
        if isinstance(segment, str)
        else tuple(unit(place, said) for said in sequence(place, segment))
        for segment in sequence(place, value)
    )


def _widths(place: str, value: object) -> tuple[Number, ...]:
    count = one_of(Count)
    return tuple(
        Number(name=text(place, name), count=count(f"{place}.{name}", said))
        for name, said in mapping(place, value).items()
    )


def _numbers(place: str, value: object) -> tuple[Number, ...]:
    """Read ``{self_attn: {num_heads: groups}}``: attributes by module, and how they follow from the groups."""
    return tuple(
        build(
            Number,
            f"{place}.{module}.{name}",
            {"module": module, "name": name, **(said if isinstance(said, Mapping) else {"count": said})},
            _OWN,
        )
        for module, names in mapping(place, value).items()
        for name, said in mapping(f"{place}.{module}", names).items()
    )


_OWN: dict[type, dict[str, Read]] = {
    DimensionSpec: {
        "members": _members,
        "consumer": _consumer,
        "widths": _widths,
        "recorded": _widths,
        "numbers": _numbers,
    },
    MemberSpec: {"segments": _segments},
}
"""Fields that have short forms."""
