"""A description of an architecture, written as YAML: the short forms of :mod:`loraprune.architectures.reading`."""

from __future__ import annotations

from dataclasses import MISSING, fields
from typing import Any

import yaml

from loraprune.architectures.spec import ArchitectureSpec, Axis, DimensionSpec, MemberSpec, Number


class Dumper(yaml.SafeDumper):
    """Indents lists, and writes lists of plain values on one line."""

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        """Indent a list below its key."""
        super().increase_indent(flow, False)

    def represent_list(self, data: Any) -> yaml.SequenceNode:
        """Represent a list on one line unless it contains mappings."""
        flat = not any(isinstance(value, dict) for value in data)
        return self.represent_sequence("tag:yaml.org,2002:seq", data, flow_style=flat)


Dumper.add_representer(list, Dumper.represent_list)
Dumper.add_representer(tuple, Dumper.represent_list)


def spec_text(spec: ArchitectureSpec) -> str:
    """Write a description as YAML; reading the result returns an equal description."""
    return yaml.dump(spec_values(spec), Dumper=Dumper, sort_keys=False, width=120, allow_unicode=True)


def spec_values(spec: ArchitectureSpec) -> dict[str, Any]:
    """Return a description as plain values, without defaults."""
    values = _changed(spec)
    if "config" in values:
        values["config"] = _changed(spec.config)
    if "fixed" in values:
        values["fixed"] = dict(spec.fixed)
    if spec.stream is not None:
        values["stream"] = _changed(spec.stream)
    stacks = [
        {**_changed(stack), "dimensions": [_dimension(dimension) for dimension in stack.dimensions]}
        for stack in spec.stacks
    ]
    return {**values, "stacks": stacks}


def _changed(value: Any) -> dict[str, Any]:
    """Fields of an object of the vocabulary that differ from their defaults."""
    found = {}
    for item in fields(value):
        default = item.default if item.default_factory is MISSING else item.default_factory()
        if getattr(value, item.name) != default:
            found[item.name] = getattr(value, item.name)
    return found


def _dimension(spec: DimensionSpec) -> dict[str, Any]:
    values = _changed(spec)
    modules = [member.module for member in spec.members]
    if len(set(modules)) == len(modules):
        values["members"] = {member.module: _member(member, "output") for member in spec.members}
    else:
        values["members"] = [_named_member(member, "output") for member in spec.members]
    values["consumer"] = _named_member(spec.consumer, "input")
    for key in ("widths", "recorded"):
        if key in values:
            values[key] = {number.name: number.count for number in values[key]}
    if spec.numbers:
        values["numbers"] = _numbers(spec.numbers)
    return values


def _named_member(spec: MemberSpec, axis: Axis) -> dict[str, Any]:
    return {spec.module: _member(spec, axis)}


def _member(spec: MemberSpec, axis: Axis) -> Any:
    segments: Any = [list(units) if len(units) > 1 else units[0] for units in spec.segments]
    if segments == [segments[0]] and isinstance(segments[0], str):
        segments = segments[0]
    values = _changed(spec)
    del values["module"]
    values["segments"] = segments
    if spec.axis == axis:
        del values["axis"]
    return segments if len(values) == 1 else values


def _numbers(numbers: tuple[Number, ...]) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for number in numbers:
        values = _changed(number)
        values.pop("module", None)
        del values["name"]
        found.setdefault(number.module, {})[number.name] = values if len(values) > 1 else number.count
    return found
