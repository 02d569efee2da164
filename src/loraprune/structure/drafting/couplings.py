"""Layers of a block that belong together, inferred from their shapes and from experiments with the config."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from loraprune.structure.drafting.experiments import Experiments, Pattern, parent_of
from loraprune.structure.drafting.outline import BlockKind, Layer


@dataclass(frozen=True, kw_only=True)
class Coupling:
    """Layers that share a dimension.

    Attributes:
        kind: ``heads`` or ``channels`` (``expert_channels`` if experts are stacked).
        consumer: layer that reads the dimension.
        unit: unit of a group in the consumer.
        units: unit of a group in each producer; None if its layout is unknown.
        widths: numbers of the config that follow from the groups, and how.
        evidence: reason for the coupling.
    """

    kind: str
    consumer: Layer
    unit: str
    units: tuple[tuple[Layer, str | None], ...]
    widths: tuple[tuple[str, str], ...] = ()
    evidence: str

    @property
    def is_certain(self) -> bool:
        """Whether nothing is left to decide."""
        return all(unit is not None for _, unit in self.units)


@dataclass(frozen=True, kw_only=True)
class Found:
    """Findings about one kind of block.

    Attributes:
        couplings: layers that share a dimension.
        left: linear layers that belong to no coupling.
    """

    couplings: tuple[Coupling, ...]
    left: tuple[Layer, ...]


def couplings_of(kind: BlockKind, experiments: Experiments) -> Found:
    """Find the couplings of one kind of block."""
    common = {
        name: experiments.own_name(name)
        for name in ("num_attention_heads", "num_key_value_heads", "head_dim", "num_hidden_layers")
    }
    found = {
        coupling.consumer.name: coupling
        for coupling in _heads(kind, experiments, common["num_attention_heads"], common["num_key_value_heads"])
    }
    for key, value in experiments.numbers.items():
        if key not in common.values():
            for coupling in _channels(key, value, experiments.pattern(key, kind)):
                found.setdefault(coupling.consumer.name, coupling)
    left = _without(kind.layers, found.values())
    streams = {layer.outputs for layer in kind.layers if layer.inputs is None and layer.outputs is not None}
    for coupling in _by_shape(left, streams):
        found[coupling.consumer.name] = coupling
    return Found(couplings=tuple(found.values()), left=_without(left, found.values()))


def _without(layers: Sequence[Layer], couplings: Collection[Coupling]) -> tuple[Layer, ...]:
    """Linear layers that belong to no coupling."""
    taken = {layer for coupling in couplings for layer in (coupling.consumer, *dict(coupling.units))}
    return tuple(layer for layer in layers if layer.inputs is not None and layer not in taken)


def _one_consumer_each(pattern: Pattern) -> tuple[Pattern, ...]:
    """Split a pattern into parts with one consumer each, by module if necessary; empty if that is impossible."""
    parts = [pattern] if len(pattern.consumers) == 1 else [pattern.below(parent) for parent in pattern.parents]
    layers = sum(len(part.producers) + len(part.consumers) + len(part.other) for part in parts)
    complete = layers == len(pattern.producers) + len(pattern.consumers) + len(pattern.other)
    fits = complete and all(len(part.consumers) == 1 and part.producers for part in parts)
    return tuple(parts) if fits else ()


def _heads(kind: BlockKind, experiments: Experiments, heads_key: str, kv_key: str) -> Iterator[Coupling]:
    """Attention whose heads have a width of their own, so fewer heads mean narrower layers."""
    if heads_key not in experiments.numbers:
        return
    heads = experiments.numbers[heads_key]
    pattern = experiments.pattern(heads_key, kind)
    kv_pattern = experiments.pattern(kv_key, kind) if kv_key in experiments.numbers else Pattern()
    grouped = bool(kv_pattern.producers)
    for part in _one_consumer_each(pattern):
        consumer = part.consumers[0]
        width = consumer.inputs or 0
        if width % heads:
            continue
        beside = kv_pattern if len(pattern.consumers) == 1 else kv_pattern.below(parent_of(consumer))
        kv_width = width // heads * experiments.numbers.get(kv_key, heads)
        units: list[tuple[Layer, str | None]] = [
            (layer, ("query" if grouped else "head") if layer.outputs == width else None)
            for layer in part.producers
            if layer not in beside.producers
        ]
        units += [(layer, "kv" if layer.outputs == kv_width else None) for layer in beside.producers]
        units += [(layer, None) for layer in part.other]
        widths = ((kv_key, "groups"), (heads_key, "queries")) if grouped else ((heads_key, "groups"),)
        yield Coupling(
            kind="heads",
            consumer=consumer,
            unit="query" if grouped else "head",
            units=tuple(units),
            widths=widths,
            evidence=f"{' and '.join(key for key, _ in widths)} {'set' if grouped else 'sets'} these widths",
        )


def _channels(key: str, value: int, pattern: Pattern) -> Iterator[Coupling]:
    """Layers whose width a number of the config sets, with one consumer."""
    for part in _one_consumer_each(pattern):
        consumer = part.consumers[0]
        if any(layer.experts != consumer.experts for layer in part.producers):
            continue
        units = [(layer, "channel" if layer.outputs == consumer.inputs else None) for layer in part.producers]
        stacked = consumer.experts is not None
        stated = consumer.inputs == value
        yield Coupling(
            kind="expert_channels" if stacked else "channels",
            consumer=consumer,
            unit="channel",
            units=(*units, *((layer, None) for layer in part.other)),
            widths=((key, "stratum" if stacked else "groups"),) if stated else (),
            evidence=f"{key} sets these widths"
            + ("" if stated else ", but as a factor, so no config can state other widths"),
        )


def _by_shape(layers: Sequence[Layer], streams: Collection[int]) -> Iterator[Coupling]:
    """Layers of a module that lead from the residual stream (as wide as a norm) to one width, and the one back."""
    for parent in dict.fromkeys(parent_of(layer) for layer in layers):
        inside = [layer for layer in layers if parent_of(layer) == parent]
        back = [layer for layer in inside if layer.outputs in streams and layer.inputs not in streams]
        others = [layer for layer in inside if layer not in back]
        if len(back) == 1 and others and back[0].experts is None:
            consumer = back[0]
            if all((layer.outputs, layer.inputs) == (consumer.inputs, consumer.outputs) for layer in others):
                yield Coupling(
                    kind="channels",
                    consumer=consumer,
                    unit="channel",
                    units=tuple((layer, "channel") for layer in others),
                    evidence="by their shapes; no number of the config sets only this width",
                )
