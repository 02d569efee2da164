"""Legal widths of a pruned model: head counts that its config accepts, channel counts that run fast."""

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
"""Number of groups kept by kind of dimension, in one stratum of the widest dimension of the kind."""


@dataclass(frozen=True, kw_only=True)
class LegalWidths:
    """Limits on the widths of a plan with the same widths in every layer.

    Attributes:
        counts: numbers of groups that may be kept, ascending, for each coarse kind (heads, experts).
        multiples: multiple that widths must be, for each fine kind (channels).
        only: widths of which the final model takes one, whatever the ratio; if empty, the ratio decides.
    """

    counts: Mapping[str, tuple[int, ...]]
    multiples: Mapping[str, int]
    only: tuple[Widths, ...] = ()

    @property
    def channel_multiple(self) -> int:
        """Largest of the multiples; 1 without fine kinds."""
        return max(self.multiples.values(), default=1)


def check_ratio(ratio: float) -> None:
    """Check a sparsity ratio.

    Raises:
        ValueError: it is outside of [0, 1).
    """
    check_within("ratio", ratio, "[0, 1)", "the share of prunable weights to remove")


def widest(structure: Structure, kind: str) -> int:
    """Return the groups per stratum of the widest dimension of a kind, among those that may shrink if there are any."""
    dimensions = structure.of_kind(kind)
    may_shrink = [dimension for dimension in dimensions if dimension.layer not in structure.protected]
    return max(dimension.per_stratum for dimension in may_shrink or dimensions)


def kept_in(dimension: PrunableDimension, width: int, most: int, multiple: int = 1) -> int:
    """Return the groups that a dimension keeps when the widest of its kind keeps ``width`` of ``most`` per stratum.

    Layers of that width keep the same number; if layers differ (the stages of a ConvNeXt), each keeps the same share.
    """
    share = width
    if dimension.per_stratum != most:
        share = round(width * dimension.per_stratum / most / multiple) * multiple
        share = min(max(share, dimension.floor, 1), dimension.per_stratum)
    return share * dimension.strata


def default_channel_multiple(channels: int) -> int:
    """Return the largest of 128 … 8 that is at most a 64th of the FFN's width, so rounding moves it by under 1 %."""
    return next((multiple for multiple in CHANNEL_MULTIPLES if multiple * 64 <= channels), 1)


def _channel_multiple(dimensions: Sequence[PrunableDimension], channels: int, wanted: int | None) -> int:
    needed = math.lcm(*(dimension.multiple for dimension in dimensions))
    if wanted is None:
        return math.lcm(default_channel_multiple(channels), needed)
    if not 1 <= wanted <= channels:
        raise ValueError(
            f"FFN widths cannot be multiples of {wanted}: the FFN has {channels} channels. "
            f"Choose --channel-multiple between 1 and {channels}."
        )
    if math.lcm(wanted, needed) > channels:
        raise ValueError(
            f"FFN widths cannot be multiples of {wanted}: those of {dimensions[0].name} must be multiples of "
            f"{needed} as well, up to {channels}. Choose --channel-multiple {needed}."
        )
    return math.lcm(wanted, needed)


def _head_counts(structure: Structure, kind: str, free: bool) -> tuple[int, ...]:
    """Numbers of heads (or experts) that a stratum may keep."""
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
    # A model whose own head count breaks the rule (an explicit head_dim, an older config) may keep that count.
    return accepted if most in accepted else (*accepted, most)


def legal_widths(
    structure: Structure, *, channel_multiple: int | None = None, head_counts: HeadCounts = "config"
) -> LegalWidths:
    """Return the legal widths of a model.

    Args:
        structure: structure of the model before pruning.
        channel_multiple: multiple that FFN widths are rounded to; None chooses by size.
        head_counts: ``any`` also allows counts that the model's own config rejects (they need another class at export).

    Raises:
        ValueError: the multiple is larger than the width of the FFN, or below 1.
    """
    counts, multiples = {}, {}
    for kind in structure.kinds:
        if structure.of_kind(kind)[0].fine:
            multiples[kind] = _channel_multiple(structure.of_kind(kind), widest(structure, kind), channel_multiple)
        else:
            # A result with our class accepts any number of heads.
            free = head_counts == "any" or bool(structure.protected) or structure.any_widths
            counts[kind] = _head_counts(structure, kind, free)
    return LegalWidths(counts=counts, multiples=multiples)
