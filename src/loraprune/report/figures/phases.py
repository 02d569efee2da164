"""Figure of the time spent in each phase of a run."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from loraprune.record import numbers
from loraprune.report import drawing
from loraprune.report.drawing import ACCENT, Zone
from loraprune.report.figure import FULL_WIDTH, Figure

if TYPE_CHECKING:
    from collections.abc import Mapping

_PHASE_HEIGHT = 24.0
_MARGIN = 12.0


def phases_figure(phases: Mapping[str, float]) -> Figure | None:
    """Draw the seconds of each phase.

    Args:
        phases: seconds by name, in order.

    Returns:
        None if no phase has a known duration.
    """
    known = {name: seconds for name, seconds in phases.items() if math.isfinite(seconds) and seconds >= 0}
    if not known:
        return None
    caption = f"{numbers.duration(sum(known.values()))} in total."
    return Figure(title="Time by phase", markup=_picture(known), caption=caption, full=True)


def _picture(phases: Mapping[str, float]) -> str:
    with drawing.drawing(FULL_WIDTH, _PHASE_HEIGHT * len(phases) + _MARGIN) as canvas:
        axes = canvas.subplots()
        seconds = [*phases.values()]
        total = sum(seconds) or 1.0
        texts = [f"{numbers.duration(value)} ({numbers.percent(value / total)})" for value in seconds]
        bars = axes.barh(range(len(seconds)), seconds, 0.7, color=ACCENT)
        axes.bar_label(bars, texts, padding=4)
        axes.set_yticks(range(len(seconds)), [*phases])
        axes.set_ylim(len(seconds) - 0.4, -0.6)
        axes.set_xlim(0, (max(seconds) or 1.0) * 1.25)
        axes.set_xticks([])
        axes.spines[:].set_visible(False)
        axes.grid(visible=False)
        zones = [
            Zone(
                axes=(axes,), left=0, right=axes.get_xlim()[1], bottom=i - 0.5, top=i + 0.5, texts=(f"{name}: {text}",)
            )
            for i, (name, text) in enumerate(zip(phases, texts, strict=True))
        ]
        facts = "; ".join(f"{name} {text}" for name, text in zip(phases, texts, strict=True))
        return drawing.svg_of(canvas, f"Time of the run by phase: {facts}.", zones)
