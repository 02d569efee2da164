"""Vocabulary for declaring an architecture: plain data, without models or tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

Axis = Literal["output", "input", "experts", "norm", "blocks"]
"""Side of a layer: ``output`` is what it produces (rows of a linear layer with its bias, columns of an embedding,
entries of a 1-D parameter), ``input`` what it reads (columns), ``experts`` the first axis of stacked experts and the
rows of their router. ``norm`` is the only axis of a norm that averages over all groups, so a cut changes the average.
``blocks`` are the entries of a list of blocks; descriptions do not name it, because every family has one."""

RowUnit = Literal["query", "kv", "head", "channel", "one", "queries"]
"""Size of one group along an axis: ``query`` all query heads of one KV head, ``kv`` one KV head, ``head`` one query
head, each times the width of a head; ``channel`` and ``one`` a single position, ``queries`` one position per query head
of a KV head."""

Count = Literal["queries", "groups", "stratum"]
"""How a number in a config or a module follows from the remaining groups: ``groups`` is their number, ``queries`` that
number times the query heads of a KV head, ``stratum`` their number in one stratum (one KV head, one expert)."""

Strata = Literal["kv", "experts", "shared_experts"]
"""Strata that the groups of a dimension are divided into evenly: each KV head, or each expert, keeps equally many.
Shared experts are those that every token passes through; some families hold several of them in one FFN."""


def _check_word(what: str, value: object, allowed: object) -> None:
    """Check a word that a type checker would check; otherwise it would fail as a KeyError in the middle of a model."""
    if value not in get_args(allowed):
        raise ValueError(f"{what} is {value!r}; allowed: {', '.join(get_args(allowed))}.")


@dataclass(frozen=True, kw_only=True)
class MemberSpec:
    """One side of one layer that shrinks with a dimension.

    Attributes:
        module: path of the layer below its block.
        axis: side that shrinks.
        segments: layout of the groups along that side. Segments follow each other; each holds every group
            once, in order. ``(("query",),)`` is a plain projection; ``(("query",), ("kv",), ("kv",))`` a fused
            ``[q | k | v]``; ``(("query", "kv", "kv"),)`` one in which q, k and v of each head are adjacent.
        parameter: name of the parameter if it is not ``weight`` (stacked experts, a router's bias).
        optional: whether some models of the family lack the layer.
        rest: whether positions that belong to no group may follow the last segment; they stay.
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
    """A number in a config or a module that follows from a width.

    Attributes:
        name: name of the config's or the module's attribute. In a module, ``config.NAME`` is an attribute of the config
            that the module reads in its forward pass; the module gets its own copy of the config.
        count: how the number follows from the remaining groups.
        module: path below the block, or below the model if it begins with ``/``; unused for a config.
        times: attribute of the module by which the number is multiplied, such as ``head_dim``.
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
        members: all producers of the dimension.
        consumer: layer that reads the dimension, by its input side.
        name: name that distinguishes dimensions of one kind in the same block; the kind if there is only one.
        widths: numbers of the config that follow from the remaining groups. If empty, no stock config can state
            the width, and the result needs our modeling file.
        recorded: numbers that a config of ours states per block if ``widths`` is empty, by config name, because the
            layout of the block follows from them (query heads and KV heads).
        numbers: numbers that modules of the block derive from the width.
        strata: strata that the groups are divided into evenly, or None.
        floor: name in the config of the smallest working number of groups (experts per token), or None.
        fine: whether groups are small and many, so their number is rounded to a multiple.
        multiple: multiple that the kernels that read the dimension require.
        default: whether the dimension is pruned unless the user chooses other kinds.
        optional: whether blocks without the consumer lack the dimension.
        tied: whether the groups are the same heads in every block, so all blocks lose the same ones.
        alibi: whether the position of a head determines its ALiBi slope, so only every second, fourth, ... can stay.
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
    """Names of the config attributes that determine the layout of attention.

    Attributes:
        heads: number of query heads.
        kv_heads: number of KV heads; without such an attribute, that of query heads.
        head_dim: width of a head; without such an attribute, hidden size / query heads.
        hidden: width of the residual stream.
        experts: number of routed experts.
        shared_experts: number of shared experts; without such an attribute, one.
    """

    heads: str = "num_attention_heads"
    kv_heads: str = "num_key_value_heads"
    head_dim: str = "head_dim"
    hidden: str = "hidden_size"
    experts: str = "num_experts"
    shared_experts: str = "n_shared_experts"


@dataclass(frozen=True, kw_only=True)
class StackSpec:
    """A list of similar blocks.

    Attributes:
        blocks: path of the list below the model; ``*`` matches every entry of an intermediate list.
        dimensions: prunable dimensions of a block, in the order of the forward pass.
        name: first part of the names of its dimensions.
    """

    blocks: str
    dimensions: tuple[DimensionSpec, ...]
    name: str = "layers"


@dataclass(frozen=True, kw_only=True)
class ResidualStreamSpec:
    """The layers that carry the residual stream, whose width can be reduced.

    Only for families whose layers add to the stream directly, and read it through RMS norms whose weight is a plain
    factor. In other families, the remaining channels depend on the removed ones.

    Attributes:
        embedding: path below the model of the layer that starts the stream.
        final_norm: path below the model of the norm that ends it.
        heads: paths below the model of the layers that read the result; a model has one of them, or none.
        norms: paths below a block of the norms over the stream.
        readers: paths below a block of the layers that read the stream.
        writers: paths below a block of the layers that add to the stream.
    """

    embedding: str
    final_norm: str
    heads: tuple[str, ...]
    norms: tuple[str, ...]
    readers: tuple[str, ...]
    writers: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class ArchitectureSpec:
    """Layout of a model family, as in its transformers class.

    Attributes:
        model_type: ``config.model_type`` of the family.
        stacks: lists of blocks, in the order of the forward pass.
        decoder: path of the module that calls the blocks one after the other with hidden states first (the model
            without its head). None if blocks pass on more than hidden states: the refit then runs whole models.
        blocks_return_tuples: whether the decoder takes the first entry of a block's output.
        config: config attributes that determine the layout of attention.
        heads_divide_hidden: whether the config requires the number of heads to divide the hidden size.
        relaxed_class: architecture with the same function whose config accepts any head count, or None.
        auto_class: transformers class that loads such a model.
        ragged_refusal: why widths cannot differ from block to block, or None.
        fixed: values that every export writes into the config.
        per_block: names of config attributes with one entry per block, which lose the entries of removed blocks.
        numbered: names of config attributes that, if set, make the computation of a block depend on its number, so
            whole blocks cannot be removed.
        stream: layers that carry the residual stream; None if its width cannot be reduced.
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
