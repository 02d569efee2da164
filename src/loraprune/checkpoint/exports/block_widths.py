"""Widths of each decoder block of a checkpoint, whether they agree or not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from loraprune.checkpoint.exports.errors import RuntimeFormatError

FORMAT = 1
"""Version of the description of ragged widths that this code reads."""

_BLOCK = "model.layers.{}"


@dataclass(frozen=True, kw_only=True)
class BlockWidths:
    """How wide one decoder block is.

    Attributes:
        num_attention_heads: query heads.
        num_key_value_heads: key/value heads.
        intermediate_size: channels of the FFN.
    """

    num_attention_heads: int
    num_key_value_heads: int
    intermediate_size: int

    def __post_init__(self) -> None:
        for name, width in vars(self).items():
            if not isinstance(width, int) or isinstance(width, bool) or width < 1:
                raise RuntimeFormatError(f"A block has {name} = {width!r}; a whole number of 1 or more is needed.")
        if self.num_attention_heads % self.num_key_value_heads:
            raise RuntimeFormatError(
                f"A block has {self.num_attention_heads} query heads on {self.num_key_value_heads} KV heads, which "
                "is no whole number for each."
            )


def block_widths(config: Mapping[str, Any], pruned: Mapping[str, Any] | None) -> tuple[BlockWidths, ...]:
    """The widths of every block.

    Args:
        config: values of a config, which hold for the blocks that say nothing else.
        pruned: what a ragged checkpoint's config says under ``pruned``; None where all blocks agree.

    Raises:
        RuntimeFormatError: the description is of an unknown version, or names blocks or widths that there are not.
    """
    heads = config["num_attention_heads"]
    common = BlockWidths(
        num_attention_heads=heads,
        num_key_value_heads=config.get("num_key_value_heads") or heads,
        intermediate_size=config["intermediate_size"],
    )
    names = [_BLOCK.format(number) for number in range(config["num_hidden_layers"])]
    blocks = _blocks(pruned)
    unknown = sorted(set(blocks) - set(names))
    if unknown:
        raise RuntimeFormatError(
            f"config.json describes the block {unknown[0]!r}, and the model has {len(names)} blocks "
            f"{names[0]} to {names[-1]}."
        )
    return tuple(_overridden(common, name, blocks.get(name, {})) for name in names)


def _blocks(pruned: Mapping[str, Any] | None) -> Mapping[str, Mapping[str, int]]:
    if pruned is None:
        return {}
    if pruned.get("format") != FORMAT:
        raise RuntimeFormatError(
            f"config.json describes its widths in format {pruned.get('format')!r}, and this version reads {FORMAT}: "
            "export with the version of loraprune that wrote the checkpoint."
        )
    blocks: Mapping[str, Mapping[str, int]] = pruned["blocks"]
    return blocks


def _overridden(common: BlockWidths, name: str, widths: Mapping[str, int]) -> BlockWidths:
    unknown = sorted(set(widths) - set(vars(common)))
    if unknown:
        raise RuntimeFormatError(
            f"{name} has a width of its own for {unknown[0]!r}; other runtimes can only be told "
            f"{', '.join(vars(common))}."
        )
    return replace(common, **widths)
