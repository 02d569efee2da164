"""Layers of a model: its lists of blocks, the kinds of block in each, and the layers of a kind with their sizes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from loraprune.layers.axes import axis_length
from loraprune.layers.unwrap import base_layer


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One layer of a block, or one parameter of a layer that has several.

    Attributes:
        module: path below the block.
        parameter: name of the parameter.
        type: class of the module.
        shape: stored shape of the parameter.
        outputs: length of the output side (of one expert if experts are stacked), or None.
        inputs: length of the input side, or None.
        experts: number of matrices stacked in the parameter, or None.
        bias: whether the layer has a bias along its outputs.
    """

    module: str
    parameter: str
    type: str
    shape: tuple[int, ...]
    outputs: int | None
    inputs: int | None
    experts: int | None = None
    bias: bool = False

    @property
    def name(self) -> str:
        """Path, followed by the parameter if it is not the weight."""
        return self.module if self.parameter == "weight" else f"{self.module} {self.parameter}".strip()


@dataclass(frozen=True, kw_only=True)
class BlockKind:
    """Blocks with the same layers of the same sizes.

    Attributes:
        blocks: names of the blocks in the model.
        indices: their positions in the stack.
        layers: layers of each block.
    """

    blocks: tuple[str, ...]
    indices: tuple[int, ...]
    layers: tuple[Layer, ...]


@dataclass(frozen=True, kw_only=True)
class Stack:
    """A list of blocks; its path contains ``*`` if the blocks are spread over several lists."""

    path: str
    name: str
    kinds: tuple[BlockKind, ...]


def _sides(module: nn.Module, parameter: str) -> tuple[int | None, int | None]:
    """Outputs and inputs of a layer; None if it has no such side."""
    sizes: list[int | None] = []
    for axis in ("output", "input"):
        try:
            sizes.append(axis_length(module, axis, parameter))
        except (ValueError, IndexError):
            sizes.append(None)
    return sizes[0], sizes[1]


def layers_of(block: nn.Module) -> tuple[Layer, ...]:
    """Return the layers of a block in the order of their declaration, including norms and single parameters."""
    found = []
    for path, wrapped in block.named_modules():
        module = base_layer(wrapped)
        for name, parameter in module.named_parameters(recurse=False):
            if name == "bias" and getattr(module, "weight", None) is not None:
                continue
            weight = name == "weight"
            known = parameter.dim() <= 2 if weight else parameter.dim() == 3
            outputs, inputs = _sides(module, name) if known else (None, None)
            found.append(
                Layer(
                    module=path,
                    parameter=name,
                    type=type(module).__name__,
                    shape=tuple(parameter.shape),
                    outputs=outputs,
                    inputs=inputs,
                    experts=parameter.shape[0] if known and not weight else None,
                    bias=weight and getattr(module, "bias", None) is not None,
                )
            )
    return tuple(found)


def outline(model: nn.Module) -> tuple[Stack, ...]:
    """Find the lists of blocks of a model; works on the meta device."""
    lists: dict[str, list[tuple[str, nn.Module]]] = {}
    for path, blocks in _block_lists(model, ""):
        lists.setdefault(path, []).extend(blocks)
    names = _short_names(list(lists))
    return tuple(Stack(path=path, name=names[path], kinds=_kinds(blocks)) for path, blocks in lists.items())


def _kinds(blocks: list[tuple[str, nn.Module]]) -> tuple[BlockKind, ...]:
    found: dict[tuple[Layer, ...], list[int]] = {}
    for index, (_, block) in enumerate(blocks):
        found.setdefault(layers_of(block), []).append(index)
    return tuple(
        BlockKind(blocks=tuple(blocks[i][0] for i in indices), indices=tuple(indices), layers=layers)
        for layers, indices in found.items()
    )


def _is_block_list(module: nn.Module) -> bool:
    """Whether a module is a list whose entries all have several layers."""
    return (
        isinstance(module, nn.ModuleList)
        and len(module) > 0
        and all(sum(layer.inputs is not None for layer in layers_of(block)) > 1 for block in module)
    )


def _block_lists(module: nn.Module, path: str) -> Iterator[tuple[str, list[tuple[str, nn.Module]]]]:
    """Yield path (with ``*`` for the stage) and named blocks of every list of blocks."""
    for name, child in module.named_children():
        below = f"{path}.{name}" if path else name
        if not _is_block_list(child):
            yield from _block_lists(child, below)
            continue
        inner = _list_in_every_stage(child)
        if inner is None:
            yield below, [(f"{below}.{index}", block) for index, block in child.named_children()]
        else:
            for index, stage in child.named_children():
                blocks = stage.get_submodule(inner).named_children()
                yield f"{below}.*.{inner}", [(f"{below}.{index}.{inner}.{i}", block) for i, block in blocks]


def _list_in_every_stage(stages: nn.Module) -> str | None:
    """Name of the list of similar blocks that every entry of a list has, for models made of stages."""
    shared: set[str] | None = None
    for stage in stages.children():
        lists = {
            name
            for name, child in stage.named_children()
            if _is_block_list(child) and len({type(block) for block in child.children()}) == 1
        }
        shared = lists if shared is None else shared & lists
    return min(shared) if shared and len(shared) == 1 else None


def _short_names(paths: list[str]) -> dict[str, str]:
    """Parts that distinguish each path from the others; ``layers`` if there is only one path."""
    if len(paths) < 2:
        return dict.fromkeys(paths, "layers")
    parts = {path: [part for part in path.split(".") if part != "*"] for path in paths}
    shared = set.intersection(*(set(found) for found in parts.values()))
    return {path: "_".join(part for part in found if part not in shared) or path for path, found in parts.items()}
