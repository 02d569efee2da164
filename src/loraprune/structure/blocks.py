"""The dimension ``blocks``: the whole decoder blocks of a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import nn

from loraprune.architectures import PREFIX
from loraprune.architectures.spec import ArchitectureSpec
from loraprune.structure.dimensions import WHOLE_MODEL, Member, PrunableDimension

if TYPE_CHECKING:
    from transformers import PretrainedConfig

_KIND = "blocks"
COUNT = "num_hidden_layers"
"""Name that every transformers config has for the number of blocks, directly or through its ``attribute_map``."""

BLOCK_NUMBER = "layer_idx"
"""Attribute in which attention stores the number of its block, which selects its part of the KV cache."""


def _base_shapes(block: nn.Module) -> dict[str, tuple[int, ...]]:
    """Shapes of a block's own parameters, without adapters."""
    return {
        name.replace(".base_layer.", "."): tuple(parameter.shape)
        for name, parameter in block.named_parameters()
        if ".lora_" not in name
    }


def blocks_refusal(
    model: nn.Module, config: PretrainedConfig, spec: ArchitectureSpec, blocks: Sequence[str]
) -> str | None:
    """Return why no whole block of a model can be removed; None if blocks can be.

    The result has to be an ordinary model with fewer blocks. So all blocks must be alike, and the computation of a
    block must not depend on its number.
    """
    lists = {block.rpartition(".")[0] for block in blocks}
    if spec.decoder is None or len(lists) != 1:
        return f"the blocks of a {spec.model_type} model are not one list of blocks that pass on only hidden states"
    if config.model_type.startswith(PREFIX):
        return "its blocks already differ: it was saved with a modeling file of loraprune, which lists them by number"
    if getattr(config, COUNT, None) != len(blocks):
        return f"its config does not state the number of its blocks ({len(blocks)}) as {COUNT}"
    for name in spec.numbered:
        if getattr(config, name, None):
            return f"the computation of a block depends on its number ({name} in the config)"
    first = _base_shapes(model.get_submodule(blocks[0]))
    other = next((block for block in blocks if _base_shapes(model.get_submodule(block)) != first), None)
    if other is not None:
        return f"its blocks differ: {other} and {blocks[0]} have different parameters"
    return "it has only one block" if len(blocks) == 1 else None


def blocks_dimension(model: nn.Module, spec: ArchitectureSpec, blocks: Sequence[str]) -> PrunableDimension:
    """Build the dimension of the whole blocks of a model that :func:`blocks_refusal` accepts."""
    return PrunableDimension(
        name=f"{spec.stacks[0].name}.{_KIND}",
        kind=_KIND,
        layer=WHOLE_MODEL,
        num_groups=len(blocks),
        members=(),
        consumer=Member(module=blocks[0].rpartition(".")[0], axis="blocks", segments=(1,)),
        parameters_per_group=sum(
            p.numel() for n, p in model.get_submodule(blocks[0]).named_parameters() if ".lora_" not in n
        ),
        config={COUNT: (1, 1)},
    )


def write_depth_(config: PretrainedConfig, spec: ArchitectureSpec, kept: Sequence[int], before: int) -> None:
    """Write the remaining blocks of a model into its config, in place.

    Args:
        config: config of a model with ``before`` blocks; one that was already updated does not change.
        spec: spec of the family.
        kept: positions of the blocks that stay, ascending.
        before: number of blocks before the cut.
    """
    for name in spec.per_block:
        entries = getattr(config, name, None)
        if isinstance(entries, (list, tuple)) and len(entries) == before:
            setattr(config, name, type(entries)(entries[position] for position in kept))
    setattr(config, COUNT, len(kept))


def renumber_(blocks: nn.ModuleList) -> None:
    """Renumber the blocks of a list from 0: a gap in the numbers would leave an empty place in the KV cache."""
    for number, block in enumerate(blocks):
        for module in block.modules():
            numbered: Any = module
            if isinstance(getattr(numbered, BLOCK_NUMBER, None), int):
                setattr(numbered, BLOCK_NUMBER, number)
