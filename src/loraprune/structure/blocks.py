"""The dimension ``blocks``: a model's whole decoder blocks, of which some can go."""

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
"""What every config of transformers calls the number of blocks, itself or through its ``attribute_map``."""

BLOCK_NUMBER = "layer_idx"
"""Where attention keeps its block's number, by which it finds its part of the cache of keys and values."""


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
    """Why no whole block of a model can go; None where some can.

    What is left has to be an ordinary model with fewer blocks, so that all blocks must be alike, and a block must not
    compute something else under another number.
    """
    lists = {block.rpartition(".")[0] for block in blocks}
    if spec.decoder is None or len(lists) != 1:
        return f"the blocks of a {spec.model_type} model are not one list of blocks that hand on hidden states alone"
    if config.model_type.startswith(PREFIX):
        return "its blocks differ already: it was saved with a modeling file of loraprune, which lists them by number"
    if getattr(config, COUNT, None) != len(blocks):
        return f"its config does not say the number of its blocks ({len(blocks)}) as {COUNT}"
    for name in spec.numbered:
        if getattr(config, name, None):
            return f"what a block computes depends on its number ({name} in the config)"
    first = _base_shapes(model.get_submodule(blocks[0]))
    other = next((block for block in blocks if _base_shapes(model.get_submodule(block)) != first), None)
    if other is not None:
        return f"its blocks differ: {other} has other parameters than {blocks[0]}"
    return "it has a single block" if len(blocks) == 1 else None


def blocks_dimension(model: nn.Module, spec: ArchitectureSpec, blocks: Sequence[str]) -> PrunableDimension:
    """The whole blocks of a model that :func:`blocks_refusal` lets pass, as one dimension."""
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
    """Write into a config that of ``before`` blocks only some are left, in place.

    Args:
        config: of a model with ``before`` blocks; one that was written already stays as it is.
        spec: of the family.
        kept: positions of the blocks that stay, ascending.
        before: number of blocks that the config may speak of.
    """
    for name in spec.per_block:
        entries = getattr(config, name, None)
        if isinstance(entries, (list, tuple)) and len(entries) == before:
            setattr(config, name, type(entries)(entries[position] for position in kept))
    setattr(config, COUNT, len(kept))


def renumber_(blocks: nn.ModuleList) -> None:
    """Number the blocks of a list anew, from 0: a gap in the numbers would be an empty place in the cache."""
    for number, block in enumerate(blocks):
        for module in block.modules():
            numbered: Any = module
            if isinstance(getattr(numbered, BLOCK_NUMBER, None), int):
                setattr(numbered, BLOCK_NUMBER, number)
