"""Sides of layers whose size a number of the config sets, found by changing it on models without weights."""

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
"""Builds a model on the meta device."""


@dataclass(frozen=True, kw_only=True)
class Pattern:
    """Changes in a block after one number of the config is changed.

    Attributes:
        producers: layers of which only the outputs change.
        consumers: layers of which only the inputs change.
        other: layers that change in another way.
    """

    producers: tuple[Layer, ...] = ()
    consumers: tuple[Layer, ...] = ()
    other: tuple[Layer, ...] = ()

    def below(self, parent: str) -> Pattern:
        """Return the part of the pattern inside one module of the block."""
        inside = [
            tuple(layer for layer in layers if parent_of(layer) == parent)
            for layers in (self.producers, self.consumers, self.other)
        ]
        return Pattern(producers=inside[0], consumers=inside[1], other=inside[2])

    @property
    def parents(self) -> tuple[str, ...]:
        """Modules of the block that contain its consumers."""
        return tuple(dict.fromkeys(parent_of(layer) for layer in self.consumers))


def parent_of(layer: Layer) -> str:
    """Return the module that contains a layer; for stacked experts, the module that stacks them."""
    return layer.module.rpartition(".")[0] if layer.experts is None else layer.module


class Experiments:
    """A model whose config is changed, one number at a time.

    Attributes:
        config: the base config, with an explicit head width if hidden size and heads determine it.
        numbers: whole numbers of the config that may be widths, under the family's own names.
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
        """Return the family's name for an attribute that all transformers configs share."""
        return str(getattr(self.config, "attribute_map", {}).get(name, name))

    def pattern(self, key: str, kind: BlockKind) -> Pattern:
        """Return the changes in a kind of block after a number of the config is changed.

        The pattern is empty if neither twice the number nor half of it yields a model. It is also empty if the number
        changes layers outside of the blocks: then it is the width of the residual stream.
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
            except Exception:  # any exception of a config or a model means that it rejects this number
                continue
            same_blocks = all(find_module(model, block.removesuffix(".")) is not None for block in self._blocks)
            return model if same_blocks and self._outside(model) == self._before else None
        return None

    def _outside(self, model: nn.Module) -> dict[str, tuple[int, ...]]:
        """Shapes of the parameters outside of all blocks."""
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
