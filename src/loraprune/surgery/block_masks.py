"""Masks on whole blocks: a masked block hands on what came in."""

from __future__ import annotations

from typing import Any

from torch import nn

from loraprune.importance.evidence.evidence_block_gates import entering


class BlockMask:
    """Masks on a list of blocks, which follow a plan.

    Masked blocks still run, and write to a cache where there is one; nobody sees what they compute.
    """

    def __init__(self, blocks: nn.ModuleList) -> None:
        self._kept: tuple[int, ...] = tuple(range(len(blocks)))
        self._handles = [
            block.register_forward_hook(self._skipping(number), with_kwargs=True) for number, block in enumerate(blocks)
        ]

    def _skipping(self, number: int) -> Any:
        def skip(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
            if number in self._kept:
                return None
            before = entering(args, kwargs)
            return (before, *output[1:]) if isinstance(output, tuple) else before

        return skip

    def follow(self, kept: tuple[int, ...]) -> None:
        """Follow another plan."""
        self._kept = kept

    def remove(self) -> None:
        """Take the masks off."""
        for handle in self._handles:
            handle.remove()
