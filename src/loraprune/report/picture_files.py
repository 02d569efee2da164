"""Figures as separate files for papers and slides: in the colors of the page's light scheme, on white."""

from __future__ import annotations

import io
import re
import warnings
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loraprune.record import atomic
from loraprune.report import drawing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SUFFIXES = (".svg", ".png", ".pdf")
PNG_DPI = 220
_COLORED = ("color", "facecolor", "edgecolor", "markerfacecolor", "markeredgecolor")


def check_picture(path: Path) -> None:
    """Check that a figure can be written under a name.

    Raises:
        ValueError: its suffix is not a supported format.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"The picture {path} must end in one of {', '.join(SUFFIXES)}, such as {path.stem}.svg.")


def save_picture(figure: Figure, path: Path) -> None:
    """Write a figure drawn with the colors of :mod:`loraprune.report.drawing`, replacing these colors in it.

    The file is written atomically.

    Raises:
        ValueError: see :func:`check_picture`.
    """
    import matplotlib

    check_picture(path)
    kind = path.suffix.lower().removeprefix(".")
    content = io.BytesIO()
    undated = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(kind)
    style: dict[Any, Any] = {"svg.fonttype": "path", "pdf.fonttype": 42, "svg.hashsalt": path.stem}
    with matplotlib.rc_context(style), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"Glyph \d+ .* missing from")
        figure.draw_without_rendering()  # axes create their ticks when they are drawn
        _recolor_(figure)
        figure.savefig(
            content, format=kind, dpi=PNG_DPI, facecolor="white", bbox_inches="tight", pad_inches=0.1, metadata=undated
        )
    atomic.write_bytes(path, content.getvalue())


def _recolor_(figure: Figure) -> None:
    from matplotlib.colors import to_hex

    colors = {stand_in: light_colors()[variable] for stand_in, variable in drawing.VARIABLES.items()}
    artist: Any
    for artist in figure.findobj():
        for name in _COLORED:
            get, set_ = getattr(artist, f"get_{name}", None), getattr(artist, f"set_{name}", None)
            if get is None or set_ is None:
                continue
            try:
                found = to_hex(get())
            except (TypeError, ValueError):  # several colors at once, or none
                continue
            if found in colors:
                set_(colors[found])


@cache
def light_colors() -> dict[str, str]:
    """The colors of the page in its light scheme, by variable."""
    sheet = files(__package__).joinpath("page.css.j2").read_text(encoding="utf-8")
    first = re.search(r":root \{(.*?)\}", sheet, re.DOTALL)
    assert first is not None
    return dict(re.findall(r"(--[\w-]+): (#\w+);", first[1]))
