"""Draft of a description for an unknown family: YAML for what is certain, comments for what you have to decide."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import yaml

from loraprune.architectures.values import TODO
from loraprune.architectures.writing import Dumper
from loraprune.structure.drafting.couplings import Coupling, Found, couplings_of
from loraprune.structure.drafting.experiments import Build, Experiments, parent_of
from loraprune.structure.drafting.outline import Layer, Stack

if TYPE_CHECKING:
    from transformers import PretrainedConfig

_HEAD = """\
# A draft of the description of {model_type}, made by `loraprune inspect`. Each entry says how it was found: by changing
# numbers of the config on models without weights, or by shapes. Compare it with the model's source, and
# decide on every TODO. docs/architectures.md explains the terms.
"""


def draft(config: PretrainedConfig, stacks: Sequence[Stack], build: Build, auto_class: str) -> str:
    """Draft a description.

    Args:
        config: config of the model.
        stacks: its lists of blocks.
        build: builds a model without weights from a changed config.
        auto_class: transformers class that loads the model.
    """
    lines = [_HEAD.format(model_type=config.model_type).rstrip(), f"model_type: {config.model_type}"]
    if auto_class != "AutoModelForCausalLM":
        lines.append(f"auto_class: {auto_class}")
    experiments = Experiments(config, stacks, build)
    experts = _experts_key(stacks, experiments)
    if experts not in (None, "num_experts"):
        lines += ["config:", f"  experts: {experts}"]
    lines.append("stacks:" if stacks else f"stacks: {TODO}  # no list of blocks was found")
    for stack in stacks:
        lines += [f"  - blocks: {_text(stack.path)}", f"    name: {_text(stack.name)}", "    dimensions:"]
        lines += [f"      {line}".rstrip() for line in _stack_lines(stack, experiments)]
    return "\n".join(lines) + "\n"


def _experts_key(stacks: Sequence[Stack], experiments: Experiments) -> str | None:
    """Name of the config's number of stacked experts."""
    for kind in (kind for stack in stacks for kind in stack.kinds):
        stacked = {layer for layer in kind.layers if layer.experts is not None}
        for key, value in experiments.numbers.items():
            if any(layer.experts == value for layer in stacked) and stacked <= set(
                experiments.pattern(key, kind).other
            ):
                return key
    return None


def _stack_lines(stack: Stack, experiments: Experiments) -> Iterator[str]:
    found = [couplings_of(kind, experiments) for kind in stack.kinds]
    merged: dict[str, Coupling] = {}
    for coupling in (coupling for each in found for coupling in each.couplings):
        earlier = merged.setdefault(coupling.consumer.name, coupling)
        if len(coupling.units) > len(earlier.units):  # a block may have more layers than the first
            merged[coupling.consumer.name] = coupling
    names = _dimension_names(list(merged.values()))
    for name, coupling in merged.items():
        everywhere = all(any(layer.name == name for layer in kind.layers) for kind in stack.kinds)
        yield from _coupling_lines(coupling, names[name], optional=not everywhere)
    yield from _left_lines(found)


def _dimension_names(couplings: Sequence[Coupling]) -> dict[str, str | None]:
    """Names for the dimensions of a kind that occurs several times in a block, from their modules."""
    kinds = [coupling.kind for coupling in couplings]
    return {
        coupling.consumer.name: None
        if kinds.count(coupling.kind) == 1
        else "_".join([*parent_of(coupling.consumer).split("."), coupling.kind]).strip("_")
        for coupling in couplings
    }


def _coupling_lines(coupling: Coupling, name: str | None, *, optional: bool) -> Iterator[str]:
    values: dict[str, Any] = {"kind": coupling.kind}
    if name is not None:
        values["name"] = name
    values["members"] = [_member(layer, unit or TODO) for layer, unit in coupling.units]
    if all(len(member) == 1 for member in values["members"]):
        values["members"] = {key: said for member in values["members"] for key, said in member.items()}
    values["consumer"] = _member(coupling.consumer, coupling.unit)
    if coupling.widths:
        values["widths"] = dict(coupling.widths)
    if coupling.kind == "expert_channels":
        values["strata"] = "experts"
    if coupling.kind != "heads":
        values["fine"] = True
    if optional:
        values["optional"] = True
    text = yaml.dump([values], Dumper=Dumper, sort_keys=False, width=120).splitlines()
    yield f"# Found: {coupling.evidence}."
    if coupling.is_certain:
        yield from text
        return
    for layer in (layer for layer, unit in coupling.units if unit is None):
        if layer.inputs is None:
            yield f"# TODO {layer.name} ({layer.type}, {layer.outputs}) changes as well: how much of it is in a group?"
        else:
            read = coupling.consumer.inputs
            yield f"# TODO {layer.name} has {layer.outputs} outputs, but {read} are read. Its layout is [a, b] if parts"
            yield "#   follow each other, and [[a, b]] if they are interleaved per group."
    yield from (f"# {line}" for line in text)


def _member(layer: Layer, segments: str) -> dict[str, Any]:
    if layer.parameter == "weight":
        return {layer.module: segments}
    return {layer.module: {"segments": segments, "parameter": layer.parameter}}


def _left_lines(found: Sequence[Found]) -> Iterator[str]:
    """Comments on the remaining layers, by the module that contains them."""
    left = list(dict.fromkeys(layer for each in found for layer in each.left))
    modules: dict[str, list[Layer]] = {}
    for layer in left:
        modules.setdefault(parent_of(layer) or "(the block itself)", []).append(layer)
    for module, layers in modules.items():
        yield f"# TODO {module}: do some of these layers produce a dimension that another one reads?"
        for layer in layers:
            yield f"#   {layer.name}: {layer.type}, {layer.inputs} -> {layer.outputs}"
    if left:
        yield "# - kind: TODO             # heads, channels, ..."
        yield "#   members: {TODO: TODO}  # layer: unit"
        yield "#   consumer: {TODO: TODO}"


def _text(value: str) -> str:
    """Write a text as YAML, in quotes if necessary."""
    return str(yaml.safe_dump(value, width=1000)).splitlines()[0]
