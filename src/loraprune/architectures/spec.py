"""The vocabulary in which an architecture is declared: pure data, no model, no tensor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

Axis = Literal["output", "input", "experts", "norm", "blocks"]
"""Side of a layer: ``output`` is what it makes (rows of a linear layer with its bias, columns of an embedding, entries
of a 1-D parameter), ``input`` what it reads (columns), ``experts`` the first axis of stacked experts and the rows of
their router. ``norm`` is the one axis of a norm that averages over all groups, so that a cut changes the average.
``blocks`` are the entries of a list of blocks; no description names it, since every family has one."""

RowUnit = Literal["query", "kv", "head", "channel", "one", "queries"]
"""What one group takes of an axis: ``query`` all query heads of one KV head, ``kv`` one KV head, ``head`` one query
head, each times the width of a head; ``channel`` and ``one`` a single position, ``queries`` one position for each query
head of a KV head."""

Count = Literal["queries", "groups", "stratum"]
"""How a number in a config or a module follows from the groups that stay: ``groups`` their number, ``queries`` that
number times the query heads of a KV head, ``stratum`` their number in one stratum (one KV head, one expert)."""

Strata = Literal["kv", "experts", "shared_experts"]
"""What the groups of a dimension are spread over evenly: each KV head, or each expert, keeps equally many. Shared
experts are those that every token passes; some families hold several of them in one FFN."""


def _check_word(what: str, value: object, allowed: object) -> None:
    """A type checker would say so; a user without one should not meet it as a KeyError in the middle of a model."""
    if value not in get_args(allowed):
        raise ValueError(f"{what} is {value!r}; allowed: {', '.join(get_args(allowed))}.")


@dataclass(frozen=True, kw_only=True)
class MemberSpec:
    """One side of one layer that shrinks with a dimension.

    Attributes:
        module: path of the layer below its block.
        axis: the side that shrinks.
        segments: how the groups lie along that side. Segments stand one after the other; each holds every group
            once, in order. ``(("query",),)`` is a plain projection; ``(("query",), ("kv",), ("kv",))`` a fused
            ``[q | k | v]``; ``(("query", "kv", "kv"),)`` one where q, k and v of each head stand together.
        parameter: name of the parameter where it is not ``weight`` (stacked experts, a router's bias).
        optional: some models of the family do not have the layer.
        rest: positions that belong to no group may follow behind the last segment; they stay.
    """

    module: str
    axis: Axis
    segments: tuple[tuple[RowUnit, ...], ...]
    parameter: str = "weight"
    optional: bool = False
    rest: bool = False

    def __post_init__(self) -> None:
        _check_word(f"axis of {self.module}", self.axis, Axis)
        for unit in (unit for segment in self.segments for unit in segment):
            _check_word(f"a unit of {self.module}", unit, RowUnit)


@dataclass(frozen=True, kw_only=True)
class Number:
    """A number that a config or a module keeps of a width.

    Attributes:
        name: of the config's or the module's attribute. In a module, ``config.NAME`` is an attribute of the config that
            the module reads in its forward pass; it gets a copy of its own.
        count: how it follows from the groups that stay.
        module: path below the block, or below the model where it begins with ``/``; unused in a config.
        times: what the name in ``times`` (an attribute of the module) multiplies it with, such as ``head_dim``.
    """

    name: str
    count: Count
    module: str = ""
    times: str | None = None

    def __post_init__(self) -> None:
        _check_word(f"count of {self.name}", self.count, Count)


@dataclass(frozen=True, kw_only=True)
class DimensionSpec:
    """A dimension that can be shortened in every block.

    Attributes:
        kind: ``heads``, ``query_heads``, ``channels``, ``expert_channels``, ``experts``, ...: one number in the config.
        members: every producer of the dimension.
        consumer: the layer that reads it, by its input side.
        name: tells dimensions of one kind in the same block apart; the kind where there is only one.
        widths: numbers of the config that follow from the groups that stay. Without any, no stock config can say
            the width, and the result needs our modeling file.
        recorded: where ``widths`` is empty, numbers by names of the config that a config of ours says of each block,
            since the layout of the block follows from them (query heads and KV heads).
        numbers: what modules of the block remember of the width.
        strata: what the groups are spread over evenly, or None.
        floor: name in the config of the least number of groups that can work (experts that a token needs), or None.
        fine: groups are small and many, so that their number is rounded to a multiple.
        multiple: what the kernels that read the dimension need its width to be a multiple of.
        default: pruned unless the user chooses other kinds.
        optional: blocks without the consumer do not have the dimension.
        tied: the groups stand for the same heads in every block, so that all blocks lose the same ones.
        alibi: the position of a head decides its ALiBi slope, so that only every second, fourth, ... can stay.
    """

    kind: str
    members: tuple[MemberSpec, ...]
    consumer: MemberSpec
    name: str | None = None
    widths: tuple[Number, ...] = ()
    recorded: tuple[Number, ...] = ()
    numbers: tuple[Number, ...] = ()
    strata: Strata | None = None
    floor: str | None = None
    fine: bool = False
    multiple: int = 1
    default: bool = True
    optional: bool = False
    tied: bool = False
    alibi: bool = False

    def __post_init__(self) -> None:
        if self.strata is not None:
            _check_word(f"strata of {self.kind}", self.strata, Strata)


@dataclass(frozen=True, kw_only=True)
class ConfigKeys:
    """Names of the config attributes that say how attention is laid out.

    Attributes:
        heads: number of query heads.
        kv_heads: number of KV heads; where the config has no such attribute, as many as query heads.
        head_dim: width of a head; where the config has none, hidden size / query heads.
        hidden: width of the residual stream.
        experts: number of routed experts.
        shared_experts: number of shared experts; one where the config has no such attribute.
    """

    heads: str = "num_attention_heads"
    kv_heads: str = "num_key_value_heads"
    head_dim: str = "head_dim"
    hidden: str = "hidden_size"
    experts: str = "num_experts"
    shared_experts: str = "n_shared_experts"


@dataclass(frozen=True, kw_only=True)
class StackSpec:
    """A list of blocks of the same make.

    Attributes:
        blocks: path of the list below the model; ``*`` stands for every entry of a list on the way.
        dimensions: what can be pruned in a block, in the order in which the forward pass meets it.
        name: first part of the names of its dimensions.
    """

    blocks: str
    dimensions: tuple[DimensionSpec, ...]
    name: str = "layers"


@dataclass(frozen=True, kw_only=True)
class ResidualStreamSpec:
    """Which layers carry the residual stream, so that its width can shrink.

    Only for families in which layers add to the stream as they are, and read it through RMS norms whose weight is a
    plain factor: everything else depends on the channels that went.

    Attributes:
        embedding: path below the model of the layer that begins the stream.
        final_norm: path below the model of the norm that ends it.
        heads: paths below the model of what reads it then; a model has one of them, or none.
        norms: paths below a block of the norms over it.
        readers: paths below a block of the layers that read it.
        writers: paths below a block of the layers that add to it.
    """

    embedding: str
    final_norm: str
    heads: tuple[str, ...]
    norms: tuple[str, ...]
    readers: tuple[str, ...]
    writers: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class ArchitectureSpec:
    """A model family, as its transformers class lays it out.

    Attributes:
        model_type: ``config.model_type`` of the family.
        stacks: lists of blocks, in the order of the forward pass.
        decoder: path of the module that calls the blocks one after the other with hidden states first (the model
            without its head). None where blocks hand each other more than that: the refit then runs whole models.
        blocks_return_tuples: the decoder takes the first entry of what a block returns.
        config: where the layout of attention stands in the config.
        heads_divide_hidden: the config refuses a number of heads that does not divide the hidden size.
        relaxed_class: architecture whose config takes any head count for the same function, or None.
        auto_class: class of transformers that loads such a model.
        ragged_refusal: why widths cannot differ from block to block, or None.
        fixed: values of the config that are written at every export.
        per_block: names of config attributes that hold one entry a block, and lose those of blocks that go.
        numbered: names of config attributes which, where they are set, make what a block computes depend on its number,
            so that no whole block can go.
        stream: the layers that carry the residual stream; None where its width cannot shrink.
    """

    model_type: str
    stacks: tuple[StackSpec, ...]
    decoder: str | None = None
    blocks_return_tuples: bool = False
    config: ConfigKeys = ConfigKeys()
    heads_divide_hidden: bool = False
    relaxed_class: str | None = None
    auto_class: str = "AutoModelForCausalLM"
    ragged_refusal: str | None = None
    fixed: Mapping[str, object] = field(default_factory=dict)
    per_block: tuple[str, ...] = ("layer_types", "mlp_layer_types", "no_rope_layers")
    numbered: tuple[str, ...] = ()
    stream: ResidualStreamSpec | None = None
