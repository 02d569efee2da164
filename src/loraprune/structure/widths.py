"""Which widths a pruned model may have: head counts that its config accepts, channel counts that run fast."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from loraprune.options.field import check_within
from loraprune.structure.dimensions import PrunableDimension, Structure

CHANNEL_MULTIPLES = (128, 64, 32, 16, 8)

HeadCounts = Literal["config", "any"]
"""Numbers of heads that may be chosen: those that the model's own config accepts, or any."""

HEAD_COUNTS: tuple[HeadCounts, ...] = get_args(HeadCounts)

Widths = dict[str, int]
"""Groups kept of each kind of dimension: in one stratum of its widest dimension."""


@dataclass(frozen=True, kw_only=True)
class LegalWidths:
    """Limits on the widths of a plan with the same widths in every layer.

    Attributes:
        counts: numbers of groups that may be kept, ascending, for each coarse kind (heads, experts).
        multiples: for each fine kind (channels), what its widths are multiples of.
        only: the finished model has one of these widths, whatever the ratio; empty leaves that to the ratio.
    """

    counts: Mapping[str, tuple[int, ...]]
    multiples: Mapping[str, int]
    only: tuple[Widths, ...] = ()

    @property
    def channel_multiple(self) -> int:
        """The largest of the multiples; 1 without fine kinds."""
        return max(self.multiples.values(), default=1)


def check_ratio(ratio: float) -> None:
    """Make sure that a sparsity ratio is one.

    Raises:
        ValueError: it lies outside of [0, 1).
    """
    check_within("ratio", ratio, "[0, 1)", "the share of prunable weights that goes")


def widest(structure: Structure, kind: str) -> int:
    """Groups in one stratum of the widest dimension of a kind, of those that may shrink if there are any."""
    dimensions = structure.of_kind(kind)
    may_shrink = [dimension for dimension in dimensions if dimension.layer not in structure.protected]
    return max(dimension.per_stratum for dimension in may_shrink or dimensions)


def kept_in(dimension: PrunableDimension, width: int, most: int, multiple: int = 1) -> int:
    """Groups that one dimension keeps when the widest of its kind, of ``most`` groups a stratum, keeps ``width``.

    Layers of one width keep that number; where layers differ (the stages of a ConvNeXt), each keeps the same share.
    """
    share = width
    if dimension.per_stratum != most:
        share = round(width * dimension.per_stratum / most / multiple) * multiple
        share = min(max(share, dimension.floor, 1), dimension.per_stratum)
    return share * dimension.strata


def default_channel_multiple(channels: int) -> int:
    """Largest of 128 … 8 that is at most a 64th of the FFN's width, so that rounding moves it by under 1 %."""
    return next((multiple for multiple in CHANNEL_MULTIPLES if multiple * 64 <= channels), 1)


def _channel_multiple(dimensions: Sequence[PrunableDimension], channels: int, wanted: int | None) -> int:
    needed = math.lcm(*(dimension.multiple for dimension in dimensions))
    if wanted is None:
        return math.lcm(default_channel_multiple(channels), needed)
    if not 1 <= wanted <= channels:
        raise ValueError(
            f"FFN widths cannot be multiples of {wanted}: the FFN is {channels} channels wide. "
            f"Choose --channel-multiple between 1 and {channels}."
        )
    if math.lcm(wanted, needed) > channels:
        raise ValueError(
            f"FFN widths cannot be multiples of {wanted}: those of {dimensions[0].name} have to be multiples of "
            f"{needed} as well, up to {channels}. Choose --channel-multiple {needed}."
        )
    return math.lcm(wanted, needed)


def _head_counts(structure: Structure, kind: str, free: bool) -> tuple[int, ...]:
    """Numbers of heads (or experts) of a stratum that may be kept."""
    dimensions = structure.of_kind(kind)
    most = widest(structure, kind)
    if any(dimension.alibi for dimension in dimensions):
        return tuple(sorted(most >> power for power in range(most.bit_length()) if most >> power << power == most))
    floor = max(dimension.floor for dimension in dimensions)
    counts = tuple(range(min(floor, most), most + 1))
    config = dimensions[0].config or {}
    if not structure.spec.heads_divide_hidden or free or kind not in ("heads", "query_heads") or not config:
        return counts
    queries = structure.query_heads_per_group if kind == "heads" else dimensions[0].strata
    accepted = tuple(count for count in counts if structure.hidden_size % (count * queries) == 0)
    # A model whose own head count breaks the rule (an explicit head_dim, an older config) may at least stay as it is.
    return accepted if most in accepted else (*accepted, most)


def legal_widths(
    structure: Structure, *, channel_multiple: int | None = None, head_counts: HeadCounts = "config"
) -> LegalWidths:
    """Work out the legal widths of a model.

    Args:
        structure: of the model before pruning.
        channel_multiple: FFN widths are rounded to it; None chooses by size.
        head_counts: with ``any``, also those that the model's own config refuses (they need another class at export).

    Raises:
        ValueError: the multiple is larger than the FFN is wide, or below 1.
    """
    counts, multiples = {}, {}
    for kind in structure.kinds:
        if structure.of_kind(kind)[0].fine:
            multiples[kind] = _channel_multiple(structure.of_kind(kind), widest(structure, kind), channel_multiple)
        else:
            # A result with our class takes every number of heads.
            free = head_counts == "any" or bool(structure.protected) or structure.any_widths
            counts[kind] = _head_counts(structure, kind, free)
    return LegalWidths(counts=counts, multiples=multiples)
