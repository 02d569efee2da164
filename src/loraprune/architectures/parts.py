"""Dimensions that many families share, except for the names of their layers."""

from __future__ import annotations

from dataclasses import replace

from loraprune.architectures.spec import ArchitectureSpec, DimensionSpec, MemberSpec, Number, StackSpec


def channels(*producers: str, consumer: str, width: str | None = None) -> DimensionSpec:
    """FFN channels: one row of each producer (one, or gate and up), one column of the consumer.

    Args:
        producers: paths of the layers that produce the channels.
        consumer: path of the layer that reads them.
        width: name in the config of their number; None if no config can state it.
    """
    return DimensionSpec(
        kind="channels",
        members=tuple(MemberSpec(module=path, axis="output", segments=(("channel",),)) for path in producers),
        consumer=MemberSpec(module=consumer, axis="input", segments=(("channel",),)),
        widths=() if width is None else (Number(name=width, count="groups"),),
        fine=True,
    )


def heads(*producers: str, consumer: str, width: str | None = None) -> DimensionSpec:
    """Heads without grouping, with separate layers for q, k and v.

    Args:
        producers: paths of q, k and v.
        consumer: path of the layer that reads the heads.
        width: name in the config of their number; None if no config can state fewer, because it derives the width of a
            head from it. Such heads are pruned only on request.
    """
    return DimensionSpec(
        kind="heads",
        members=tuple(MemberSpec(module=path, axis="output", segments=(("head",),)) for path in producers),
        consumer=MemberSpec(module=consumer, axis="input", segments=(("head",),)),
        widths=() if width is None else (Number(name=width, count="groups"),),
        default=width is not None,
    )


def without_widths(dimension: DimensionSpec) -> DimensionSpec:
    """Dimension whose width the stock config cannot state: pruned on request, with the width in our config."""
    return replace(dimension, widths=(), recorded=dimension.widths, default=False)


def decoder(
    model_type: str, path: str, blocks: str, *dimensions: DimensionSpec, blocks_return_tuples: bool = False
) -> ArchitectureSpec:
    """A family with one list of blocks.

    Args:
        model_type: model type of the family.
        path: path of the module that calls the blocks.
        blocks: path of their list below that module.
        dimensions: prunable dimensions of a block.
        blocks_return_tuples: see :class:`~loraprune.architectures.spec.ArchitectureSpec`.
    """
    return ArchitectureSpec(
        model_type=model_type,
        decoder=path,
        blocks_return_tuples=blocks_return_tuples,
        stacks=(StackSpec(blocks=f"{path}.{blocks}", dimensions=dimensions),),
    )
