"""The vocabulary in which an architecture is declared: pure data, no model, no tensor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Axis = Literal["output", "input"]
"""Side of a linear layer: ``output`` is its rows (and its bias), ``input`` its columns."""

Unit = Literal["query", "kv", "channel"]
"""What one group takes of an axis: ``query`` all query heads of one KV head, ``kv`` one KV head, ``channel`` one."""


@dataclass(frozen=True, kw_only=True)
class MemberSpec:
    """One side of one linear layer that shrinks with a dimension.

    Attributes:
        module: path of the linear layer below its decoder block.
        axis: the side that shrinks.
        segments: how the groups lie along that side. Segments stand one after the other; each holds every group
            once, in order. ``(("query",),)`` is a plain projection; ``(("query",), ("kv",), ("kv",))`` a fused
            ``[q | k | v]``; ``(("query", "kv", "kv"),)`` one where q, k and v of each head stand together.
    """

    module: str
    axis: Axis
    segments: tuple[tuple[Unit, ...], ...]


@dataclass(frozen=True, kw_only=True)
class DimensionSpec:
    """A dimension that can be shortened in every decoder block.

    Attributes:
        kind: ``heads`` or ``channels``.
        members: every producer of the dimension.
        consumer: the layer that reads it, by its input side.
    """

    kind: str
    members: tuple[MemberSpec, ...]
    consumer: MemberSpec


@dataclass(frozen=True, kw_only=True)
class ConfigKeys:
    """Names of the config attributes that hold the widths."""

    heads: str = "num_attention_heads"
    kv_heads: str = "num_key_value_heads"
    head_dim: str = "head_dim"
    channels: str = "intermediate_size"
    hidden: str = "hidden_size"


@dataclass(frozen=True, kw_only=True)
class ArchitectureSpec:
    """A model family, as its transformers class lays it out.

    Attributes:
        model_type: ``config.model_type`` of the family.
        decoder: path of the module that holds the blocks (the model without its head).
        blocks: path of the list of blocks below the model.
        dimensions: what can be pruned in a block, in the order in which the forward pass meets it.
        config: where the widths stand in the config.
        heads_divide_hidden: the config refuses a number of heads that does not divide the hidden size.
        relaxed_class: architecture whose config takes any head count for the same function, or None.
    """

    model_type: str
    decoder: str
    blocks: str
    dimensions: tuple[DimensionSpec, ...]
    config: ConfigKeys = ConfigKeys()
    heads_divide_hidden: bool = False
    relaxed_class: str | None = None
