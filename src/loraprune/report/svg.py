"""Elements of SVG pictures as text; colors and fonts are left to the style sheet of the page."""

from __future__ import annotations

from html import escape
from typing import Literal

FONT_SIZE = 12
_CHARACTER_WIDTH = 0.6


def element(name: str, *children: str, **attributes: str | float) -> str:
    """Build one element; children are markup, attribute values are escaped.

    Underscores in attribute names become hyphens, and a trailing one is dropped (``class_``).
    """
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{_attribute(value)}"' for key, value in attributes.items()
    )
    return f"<{name}{written}>{''.join(children)}</{name}>" if children else f"<{name}{written}/>"


def picture(width: float, height: float, label: str, *children: str, class_: str = "") -> str:
    """Build a picture that scales with its box; ``label`` is what a screen reader says in its place."""
    return element(
        "svg",
        *children,
        xmlns="http://www.w3.org/2000/svg",
        class_=class_,
        viewBox=f"0 0 {_number(width)} {_number(height)}",
        role="img",
        aria_label=label,
    )


def title(text: str) -> str:
    """Build the tooltip of the element that it stands in."""
    return element("title", escape(text))


def label(
    x: float, y: float, text: str, *, anchor: Literal["start", "middle", "end"] = "start", class_: str = "tick"
) -> str:
    """Build a text whose baseline is at ``y``."""
    return element("text", escape(text), x=x, y=y, text_anchor=anchor, font_size=FONT_SIZE, class_=class_)


def line(x1: float, y1: float, x2: float, y2: float, class_: str) -> str:
    """Build a straight line."""
    return element("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=class_)


def rectangle(x: float, y: float, width: float, height: float, class_: str, *children: str) -> str:
    """Build a rectangle; ``children`` may hold its tooltip."""
    return element("rect", *children, x=x, y=y, width=width, height=height, class_=class_)


def polyline(points: list[tuple[float, float]], class_: str) -> str:
    """Build an open line through points."""
    written = " ".join(f"{_number(x)},{_number(y)}" for x, y in points)
    return element("polyline", points=written, class_=class_)


def text_width(text: str) -> float:
    """Estimate how wide a text is in the font of the labels, rather too much than too little."""
    return len(text) * FONT_SIZE * _CHARACTER_WIDTH


def _attribute(value: str | float) -> str:
    return escape(value) if isinstance(value, str) else _number(value)


def _number(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")
