"""Which widths a pruned model may have: head counts that its config accepts, channel counts that run fast."""

from __future__ import annotations

from dataclasses import dataclass

from loraprune.structure import Structure

CHANNEL_MULTIPLES = (128, 64, 32, 16, 8)


@dataclass(frozen=True, kw_only=True)
class LegalWidths:
    """Limits on the widths of a plan with the same widths in every layer.

    Attributes:
        head_groups: numbers of KV heads that the exported config accepts, ascending.
        channel_multiple: FFN widths are multiples of this.
    """

    head_groups: tuple[int, ...]
    channel_multiple: int


def default_channel_multiple(channels: int) -> int:
    """Largest of 128 … 8 that is at most a 64th of the FFN's width, so that rounding moves it by under 1 %."""
    return next((multiple for multiple in CHANNEL_MULTIPLES if multiple * 64 <= channels), 1)


def legal_widths(
    structure: Structure, *, channel_multiple: int | None = None, any_head_count: bool = False
) -> LegalWidths:
    """Work out the legal widths of a model.

    Args:
        structure: of the model before pruning.
        channel_multiple: FFN widths are rounded to it; None chooses by size.
        any_head_count: allow head counts that the model's own config refuses (they need another class at export).

    Raises:
        ValueError: the multiple is larger than the FFN is wide, or below 1.
    """
    num_heads = structure.of_kind("heads")[0].num_groups
    channels = structure.of_kind("channels")[0].num_groups
    if channel_multiple is None:
        channel_multiple = default_channel_multiple(channels)
    if not 1 <= channel_multiple <= channels:
        raise ValueError(
            f"FFN widths cannot be multiples of {channel_multiple}: the FFN is {channels} channels wide. "
            f"Choose --channel-multiple between 1 and {channels}."
        )
    restricted = structure.spec.heads_divide_hidden and not any_head_count
    head_groups = tuple(
        count
        for count in range(1, num_heads + 1)
        if not restricted or structure.hidden_size % (count * structure.query_heads_per_group) == 0
    )
    # A model whose own head count breaks the rule (an explicit head_dim, an older config) may at least stay as it is.
    if num_heads not in head_groups:
        head_groups += (num_heads,)
    return LegalWidths(head_groups=head_groups, channel_multiple=channel_multiple)
