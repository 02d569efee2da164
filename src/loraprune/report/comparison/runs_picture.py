"""The picture of a comparison as a file of its own, with a key to its numbers."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loraprune.report import drawing, picture_files
from loraprune.report.comparison.figure import LEGEND_HEIGHT, PANEL_HEIGHT, draw_group, legend, place_labels

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    from loraprune.report.comparison.result import RunGroup, RunsComparison

_WIDTH = 900.0
_TITLE_HEIGHT = 24.0
_KEY_HEIGHT = 18.0
_KEY_GAP = 48.0


def write_picture(comparison: RunsComparison, path: str | Path) -> None:
    """Write the picture alone, as SVG, PNG or PDF; it appears complete or not at all.

    Raises:
        ValueError: ``path`` ends in none of these.
    """
    picture_files.check_picture(Path(path))
    with _canvas(comparison.groups, _WIDTH) as canvas:
        picture_files.save_picture(canvas, Path(path))


@contextmanager
def _canvas(groups: Sequence[RunGroup], width: float) -> Iterator[Figure]:
    """All groups on one canvas, a row for each: for a file of its own."""
    columns = max(len(group.costs) for group in groups)
    names = [len(model.name) for group in groups for model in group.models]
    key_columns = max(1, int(width // (_KEY_GAP + 0.65 * drawing.FONT_POINTS * max(names))))
    keys = [math.ceil(len(group.models) / key_columns) * _KEY_HEIGHT for group in groups]
    heights = [PANEL_HEIGHT + _TITLE_HEIGHT + LEGEND_HEIGHT + key for key in keys]
    with drawing.drawing(width, sum(heights)) as canvas:
        parts = canvas.subfigures(len(groups), 1, squeeze=False, height_ratios=heights)[:, 0]
        rows = []
        for group, part in zip(groups, parts, strict=True):
            part.set_facecolor("none")
            panels = list(part.subplots(1, columns, squeeze=False, sharey="row").flat)
            for unused in panels[len(group.costs) :]:
                unused.set_axis_off()
            rows.append(panels[: len(group.costs)])
            draw_group(group, rows[-1], every_axis=False)
            marks = part.legend(handles=legend(group), loc="outside upper left", ncols=4, alignment="left")
            if len(groups) > 1:
                detail = f" ({group.quality.detail})" if group.quality.detail else ""
                marks.set_title(group.title + detail, prop={"weight": "bold"})
            style: dict[str, Any] = {"ncols": key_columns, "handlelength": 0, "handletextpad": 0}
            part.legend(handles=_key(group), loc="outside lower left", **style)
        place_labels(canvas, list(zip(groups, rows, strict=True)))
        yield canvas


def _key(group: RunGroup) -> list[Line2D]:
    """Numbers with the names of the runs, for a picture that stands without its table."""
    from matplotlib.lines import Line2D

    numbered = [model for model in group.models if model.number is not None]
    return [Line2D([], [], linestyle="none", label=f"{model.number} {model.name}") for model in numbered]
