"""Which sides of which layers a number in the config sets: found by changing it, on models without weights."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import nn

from loraprune.layers.unwrap import find_module
from loraprune.structure.drafting.outline import BlockKind, Layer, Stack, layers_of

if TYPE_CHECKING:
    from transformers import PretrainedConfig

Build = Callable[["PretrainedConfig"], nn.Module]
"""Makes a model on the meta device."""


@dataclass(frozen=True, kw_only=True)
class Pattern:
    """What changes in a block with one number of the config.

    Attributes:
        producers: layers whose outputs change, and nothing else of them.
        consumers: layers whose inputs change, and nothing else of them.
        other: layers that change in another way.
    """

    producers: tuple[Layer, ...] = ()
    consumers: tuple[Layer, ...] = ()
    other: tuple[Layer, ...] = ()

    def below(self, parent: str) -> Pattern:
        """The part of the pattern that lies in one module of the block."""
        inside = [
            tuple(layer for layer in layers if parent_of(layer) == parent)
            for layers in (self.producers, self.consumers, self.other)
        ]
        return Pattern(producers=inside[0], consumers=inside[1], other=inside[2])

    @property
    def parents(self) -> tuple[str, ...]:
        """Modules of the block that its consumers lie in."""
        return tuple(dict.fromkeys(parent_of(layer) for layer in self.consumers))


def parent_of(layer: Layer) -> str:
    """The module that a layer stands in; of stacked experts the module that stacks them."""
    return layer.module.rpartition(".")[0] if layer.experts is None else layer.module


class Experiments:
    """A model whose config is changed, one number after the other.

    Attributes:
        config: the one that is changed: with the width of a head written down, where hidden size and heads give it.
        numbers: whole numbers of the config that may be widths, under the names that the family has for them.
    """

    def __init__(self, config: PretrainedConfig, stacks: Sequence[Stack], build: Build) -> None:
        self.config = _with_head_dim(config)
        aliases = set(getattr(config, "attribute_map", {}))
        self.numbers = {
            key: value
            for key, value in self.config.to_dict().items()
            if type(value) is int and value > 1 and key not in aliases
        }
        self._build = build
        self._blocks = tuple(f"{block}." for stack in stacks for kind in stack.kinds for block in kind.blocks)
        self._before = self._outside(build(self.config))
        self._changed: dict[str, nn.Module | None] = {}

    def own_name(self, name: str) -> str:
        """The name that a family has for one of the names that all configs of transformers share."""
        return str(getattr(self.config, "attribute_map", {}).get(name, name))

    def pattern(self, key: str, kind: BlockKind) -> Pattern:
        """What changes in a kind of block with a number of the config.

        Nothing, where neither twice the number nor half of it makes a model, and where the number changes layers
        outside of the blocks as well: then it is the width of the stream that runs through all of them.
        """
        if key not in self._changed:
            self._changed[key] = self._change(key)
        model = self._changed[key]
        if model is None:
            return Pattern()
        return _compare(kind.layers, layers_of(model.get_submodule(kind.blocks[0])))

    def _change(self, key: str) -> nn.Module | None:
        value = self.numbers[key]
        for other in (2 * value, value // 2):
            changed = copy.deepcopy(self.config)
            try:
                setattr(changed, key, other)
                model = self._build(changed)
            except Exception:  # whatever a config or a model raises, it refuses this number
                continue
            same_blocks = all(find_module(model, block.removesuffix(".")) is not None for block in self._blocks)
            return model if same_blocks and self._outside(model) == self._before else None
        return None

    def _outside(self, model: nn.Module) -> dict[str, tuple[int, ...]]:
        """Shapes of what is in no block."""
        return {
            name: tuple(parameter.shape)
            for name, parameter in model.named_parameters()
            if not name.startswith(self._blocks)
        }


def _with_head_dim(config: PretrainedConfig) -> PretrainedConfig:
    changed = copy.deepcopy(config)
    hidden, heads = getattr(config, "hidden_size", None), getattr(config, "num_attention_heads", None)
    if not getattr(config, "head_dim", None) and isinstance(hidden, int) and isinstance(heads, int) and heads:
        changed.head_dim = hidden // heads
    return changed


def _compare(before: Sequence[Layer], after: Sequence[Layer]) -> Pattern:
    now = {(layer.module, layer.parameter): layer for layer in after}
    producers, consumers, other = [], [], []
    for layer in before:
        new = now.get((layer.module, layer.parameter))
        if new is not None and new.shape == layer.shape:
            continue
        if new is None or new.experts != layer.experts or layer.inputs is None:
            other.append(layer)
        elif new.inputs == layer.inputs:
            producers.append(layer)
        elif new.outputs == layer.outputs:
            consumers.append(layer)
        else:
            other.append(layer)
    return Pattern(producers=tuple(producers), consumers=tuple(consumers), other=tuple(other))
