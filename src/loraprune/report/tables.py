"""Collapsible tables of a report: widths, cuts and settings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from loraprune.record import numbers
from loraprune.report.figure import Grid, kind_in_words

if TYPE_CHECKING:
    from collections.abc import Sequence

    from loraprune.record.report_data import Cut, LayerWidth


def width_grid(layers: Sequence[LayerWidth]) -> Grid:
    """Tabulate the widths of all layers, one column per kind."""
    kinds = list(dict.fromkeys(item.kind for item in layers))
    cells: dict[tuple[int, str], list[str]] = {}
    for item in layers:
        cells.setdefault((item.layer, item.kind), []).append(f"{item.kept:,} of {item.total:,}")
    numbers_of_layers = sorted({item.layer for item in layers})
    # A layer may have several dimensions of a kind, such as the heads of a decoder's self-attention and
    # cross-attention.
    rows = (
        (str(layer), *(", ".join(cells.get((layer, kind), [numbers.MISSING])) for kind in kinds))
        for layer in numbers_of_layers
    )
    return Grid(heads=("layer", *map(kind_in_words, kinds)), rows=tuple(rows))


def cut_grid(cuts: Sequence[Cut], gone: str = "removed") -> Grid:
    """Tabulate the cuts (or mask updates). Widths that differ between layers become a range.

    Args:
        cuts: cuts in order.
        gone: word for the share.
    """
    kinds = list(dict.fromkeys(kind for cut in cuts for kind in cut.widths))
    timed = any(cut.seconds is not None for cut in cuts)
    rows = (
        (
            f"{cut.step:,}",
            numbers.percent(cut.ratio),
            *(_span(cut.widths.get(kind, ())) for kind in kinds),
            *([numbers.duration(cut.seconds)] if timed else []),
        )
        for cut in cuts
    )
    return Grid(heads=("step", gone, *map(kind_in_words, kinds), *(["took"] if timed else [])), rows=tuple(rows))


def _span(widths: Sequence[int]) -> str:
    if not widths:
        return numbers.MISSING
    least, most = min(widths), max(widths)
    return f"{least:,}" if least == most else f"{least:,} to {most:,}"


def flatten(settings: Mapping[str, object], prefix: str = "") -> list[tuple[str, str]]:
    """Convert nested settings to pairs of dotted name and text."""
    pairs = []
    for key, value in settings.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            pairs += flatten(value, f"{name}.")
        else:
            pairs.append((name, _setting(value)))
    return pairs


def _setting(value: object) -> str:
    if value is None or (isinstance(value, float) and not numbers.is_number(value)):
        return numbers.MISSING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(_setting(item) for item in value)
    return str(value)
