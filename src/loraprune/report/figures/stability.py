"""Figure of stability: change in the ranking of the groups from one cut to the next."""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING

from loraprune.record import numbers
from loraprune.report import drawing
from loraprune.report.drawing import MARKERS, SERIES, Zone
from loraprune.report.figure import FULL_WIDTH, Figure, Grid, kind_in_words

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes

    from loraprune.record.report_data import Cut

_HEIGHT = 220.0


def stability_figure(cuts: Sequence[Cut]) -> Figure | None:
    """Draw the rank correlation of the scores at each cut with those at the previous cut, by kind.

    Args:
        cuts: cuts in order.

    Returns:
        None if no cut has the correlation.
    """
    known = [cut for cut in cuts if any(map(math.isfinite, cut.stability.values()))]
    if not known:
        return None
    kinds = list(dict.fromkeys(kind for cut in known for kind in cut.stability))
    caption = (
        "Rank correlation (Spearman) of the scores with those at the previous cut, over the groups present at "
        "both. Near 1, the ranking did not change; near 0, it changed completely."
    )
    rows = tuple((f"{cut.step:,}", *(numbers.significant(cut.stability.get(kind)) for kind in kinds)) for cut in known)
    grid = Grid(heads=("step", *map(kind_in_words, kinds)), rows=rows)
    markup = _picture(known, kinds)
    return Figure(title="How stable the ranking was", markup=markup, caption=caption, full=True, numbers=grid)


def _picture(cuts: Sequence[Cut], kinds: Sequence[str]) -> str:
    from matplotlib.ticker import MaxNLocator, StrMethodFormatter

    with drawing.drawing(FULL_WIDTH, _HEIGHT) as canvas:
        axes = canvas.subplots()
        steps = [cut.step for cut in cuts]
        styles = itertools.cycle(zip(SERIES, MARKERS, strict=True))
        for kind, (color, marker) in zip(kinds, styles, strict=False):
            values = [cut.stability.get(kind, math.nan) for cut in cuts]
            axes.plot(steps, values, color=color, marker=marker, markersize=6, label=kind_in_words(kind), clip_on=False)
        least = min(_values(cuts), default=0.0)
        axes.set_ylim(min(0.0, math.floor(least * 2) / 2), 1.0)
        axes.set_xlim(*_limits(steps))
        axes.xaxis.set_major_locator(MaxNLocator(9, integer=True))
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        axes.set_xlabel("cut after training step")
        canvas.legend(loc="outside upper left", ncols=5)
        return drawing.svg_of(canvas, _description(cuts, kinds), _zones(cuts, kinds, axes))


def _limits(steps: Sequence[int]) -> tuple[float, float]:
    margin = 0.04 * (steps[-1] - steps[0]) or 1.0
    return steps[0] - margin, steps[-1] + margin


def _values(cuts: Sequence[Cut]) -> list[float]:
    return [value for cut in cuts for value in cut.stability.values() if math.isfinite(value)]


def _zones(cuts: Sequence[Cut], kinds: Sequence[str], axes: Axes) -> list[Zone]:
    first, last = axes.get_xlim()
    edges = [first, *((a.step + b.step) / 2 for a, b in itertools.pairwise(cuts)), last]
    return [
        Zone(axes=(axes,), left=left, right=right, texts=(_text(cut, kinds),))
        for cut, (left, right) in zip(cuts, itertools.pairwise(edges), strict=True)
    ]


def _text(cut: Cut, kinds: Sequence[str]) -> str:
    each = ", ".join(f"{kind_in_words(kind)} {numbers.significant(cut.stability.get(kind))}" for kind in kinds)
    return f"Cut at step {cut.step:,}: {each}"


def _description(cuts: Sequence[Cut], kinds: Sequence[str]) -> str:
    parts = []
    for kind in kinds:
        each = [cut.stability[kind] for cut in cuts if math.isfinite(cut.stability.get(kind, math.nan))]
        if each:
            span = f"between {numbers.significant(min(each))} and {numbers.significant(max(each))}"
            parts.append(f"{kind_in_words(kind)} {span}, {numbers.significant(each[-1])} at the last cut")
    return "Rank correlation of the scores between consecutive cuts: " + "; ".join(parts) + "."
