"""The frozen base of a model as FSDP2 shards it: rows of every weight, and units of gathering."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from loraprune.layers.unwrap import base_model

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import nn

    from loraprune.structure.dimensions import Structure


@dataclass(frozen=True)
class GatheredUnit:
    """Weights that are gathered in one operation.

    Attributes:
        weights: number of rows of each weight, and bytes of one of its rows.
    """

    weights: tuple[tuple[int, int], ...]

    @property
    def nbytes(self) -> int:
        """Bytes of all of them."""
        return sum(rows * row for rows, row in self.weights)

    def shard(self, processes: int) -> int:
        """Bytes that each process holds: equally many rows of every weight, with padding at the end."""
        return sum(-(-rows // processes) * row for rows, row in self.weights)

    def gathered(self, processes: int) -> int:
        """Bytes after gathering."""
        return processes * self.shard(processes)


@dataclass(frozen=True, kw_only=True)
class FrozenBase:
    """Untrained weights of a model.

    Attributes:
        blocks: weights of each block.
        outside: embedding, last norm and head, which are needed from the start of the forward pass to the end of the
            backward pass.
    """

    blocks: tuple[GatheredUnit, ...]
    outside: GatheredUnit

    @property
    def nbytes(self) -> int:
        """Bytes of all weights."""
        return self.outside.nbytes + sum(block.nbytes for block in self.blocks)

    def shard(self, processes: int) -> int:
        """Bytes that each process holds."""
        return self.outside.shard(processes) + sum(block.shard(processes) for block in self.blocks)

    def largest_block(self, processes: int) -> int:
        """Bytes of the largest block after gathering."""
        return max((block.gathered(processes) for block in self.blocks), default=0)


def frozen_base(model: nn.Module, structure: Structure, depth: int) -> FrozenBase:
    """Return the untrained weights of an adapted model, by block.

    Args:
        model: with its adapter; with fewer blocks than ``depth``, all of them alike.
        structure: its description.
        depth: number of blocks of the estimated model.
    """
    base = base_model(model)
    blocks = [_unit(base.get_submodule(name).parameters()) for name in structure.blocks]
    inside = {id(p) for name in structure.blocks for p in base.get_submodule(name).parameters()}
    more = depth - len(blocks)
    return FrozenBase(
        blocks=(*blocks, *[blocks[min(1, len(blocks) - 1)]] * more),
        outside=_unit(p for p in base.parameters() if id(p) not in inside),
    )


def _unit(parameters: Iterable[nn.Parameter]) -> GatheredUnit:
    frozen = [parameter for parameter in parameters if not parameter.requires_grad]
    rows = [parameter.shape[0] if parameter.dim() else 1 for parameter in frozen]
    return GatheredUnit(tuple((n, p.nbytes // max(n, 1)) for n, p in zip(rows, frozen, strict=True)))
