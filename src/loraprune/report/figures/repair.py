"""Figure of refit errors: effect of the last cut on each layer's output, without and with its repair."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from loraprune.record import numbers
from loraprune.report import drawing
from loraprune.report.drawing import ACCENT, CARD, CUT, Zone
from loraprune.report.figure import HALF_WIDTH, Figure, Grid, kind_in_words

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes

    from loraprune.record.report_data import RefitError

_HEIGHT = 240.0


def refit_figure(errors: Sequence[RefitError]) -> Figure:
    """Draw the errors of one kind, for each layer at its own last cut, because a cut may leave layers unchanged.

    Args:
        errors: errors of one kind, at least one.
    """
    kind, last = kind_in_words(errors[0].kind), _last(errors)
    steps = {item.step for item in last}
    caption = "Error of the output of the layer that reads the removed groups, relative to its output before"
    if len(steps) > 1:
        caption += f" (each layer's last cut, after steps {min(steps):,} to {max(steps):,})."
    else:
        caption += f" (last cut, after step {min(steps):,})." if min(steps) else "."
    if any(item.repaired is not None for item in last):
        caption += " The repair lowers the error from the open mark to the solid one."
    rows = tuple(
        (str(item.layer), f"{item.step:,}", numbers.percent(item.cut), numbers.percent(item.repaired)) for item in last
    )
    grid = Grid(heads=("layer", "step", "cut", "repaired"), rows=rows)
    return Figure(title=f"Error after cutting {kind}", markup=_picture(last), caption=caption, numbers=grid)


def _last(errors: Sequence[RefitError]) -> list[RefitError]:
    """Errors of each layer at the last cut that removed something from it, in layer order."""
    steps: dict[int, int] = {}
    for item in errors:
        steps[item.layer] = max(item.step, steps.get(item.layer, item.step))
    return sorted((item for item in errors if item.step == steps[item.layer]), key=lambda item: item.layer)


def _picture(errors: Sequence[RefitError]) -> str:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    with drawing.drawing(HALF_WIDTH, _HEIGHT) as canvas:
        axes = canvas.subplots()
        _draw_marks(errors, axes)
        drawing.draw_layer_axis(axes, [item.layer for item in errors])
        axes.set_ylim(0, 1.08 * max(_values(errors), default=0.0) or 1.0)
        axes.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g} %"))
        canvas.legend(loc="outside upper left", ncols=2)
        zones = [
            Zone(axes=(axes,), left=place - 0.5, right=place + 0.5, texts=(_text(item),))
            for place, item in enumerate(errors)
        ]
        return drawing.svg_of(canvas, _description(errors), zones)


def _draw_marks(errors: Sequence[RefitError], axes: Axes) -> None:
    """Draw an open mark for the plain cut and a solid one for the repaired layer, joined by a line."""
    size = 8.0 if len(errors) <= 40 else 5.0
    places = range(len(errors))
    cut = [numbers.or_nan(item.cut) for item in errors]
    repaired = [numbers.or_nan(item.repaired) for item in errors]
    axes.vlines(places, repaired, cut, color=CUT, linewidth=1.5)
    axes.plot(places, cut, "o", color=CARD, markeredgecolor=CUT, markeredgewidth=2, markersize=size, label="cut")
    if not all(map(math.isnan, repaired)):
        axes.plot(places, repaired, "o", color=ACCENT, markersize=size, label="cut and repaired")


def _values(errors: Sequence[RefitError]) -> list[float]:
    return [
        value for item in errors for value in (item.cut, item.repaired) if value is not None and math.isfinite(value)
    ]


def _text(item: RefitError) -> str:
    text = f"Layer {item.layer}: {numbers.percent(item.cut)} without repair"
    return text if item.repaired is None else f"{text}, {numbers.percent(item.repaired)} with it"


def _description(errors: Sequence[RefitError]) -> str:
    layers, kind = numbers.counted(len(errors), "layer"), kind_in_words(errors[0].kind)
    text = f"Relative error in {layers} after cutting {kind}: {_span(errors, False)}"
    if any(item.repaired is not None for item in errors):
        text += f" without repair, {_span(errors, True)} with it"
    return text + "."


def _span(errors: Sequence[RefitError], repaired: bool) -> str:
    values = [numbers.or_nan(item.repaired if repaired else item.cut) for item in errors]
    finite = [value for value in values if math.isfinite(value)]
    return f"{numbers.percent(min(finite))} to {numbers.percent(max(finite))}" if finite else "unknown"


def refit_table(errors: Sequence[RefitError]) -> Grid:
    """Tabulate the errors of all cuts: the mean over the layers of each kind, and the worst layer."""
    together: dict[tuple[int, str], list[RefitError]] = {}
    for item in errors:
        together.setdefault((item.step, item.kind), []).append(item)
    return Grid(
        heads=("step", "kind", "cut, mean", "repaired, mean", "worst layer", "its error"),
        rows=tuple(_row(step, kind, found) for (step, kind), found in together.items()),
    )


def _row(step: int, kind: str, errors: Sequence[RefitError]) -> tuple[str, ...]:
    left = [item.cut if item.repaired is None else item.repaired for item in errors]
    known = [(value, item.layer) for value, item in zip(left, errors, strict=True) if math.isfinite(value)]
    worst, layer = max(known, default=(math.nan, -1))
    return (
        f"{step:,}",
        kind_in_words(kind),
        numbers.percent(_mean([item.cut for item in errors])),
        numbers.percent(_mean([item.repaired for item in errors])),
        str(layer) if known else numbers.MISSING,
        numbers.percent(worst),
    )


def _mean(values: Sequence[float | None]) -> float | None:
    finite = [value for value in values if value is not None and math.isfinite(value)]
    return sum(finite) / len(finite) if finite else None
