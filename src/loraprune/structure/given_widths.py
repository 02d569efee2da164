"""Widths named by the user, or the choices that a goal of size or speed allows, written as text."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from loraprune.structure.widths import Widths, widest

if TYPE_CHECKING:
    from loraprune.structure.dimensions import Structure

_ONE = re.compile(r"\s*([a-z_]+)\s*=\s*([0-9]+)\s*")
_EXAMPLE = "write heads=3,channels=1120, with a semicolon between alternatives"


def parse_widths(text: str) -> tuple[Widths, ...]:
    """Parse ``heads=3,channels=1120``, or several such choices separated by ``;``.

    Raises:
        ValueError: the text does not have this form.
    """
    choices = []
    for choice in text.split(";"):
        found = [_ONE.fullmatch(part) for part in choice.split(",")]
        pairs = [match.groups() for match in found if match is not None]
        if len(pairs) < len(found) or len({kind for kind, _ in pairs}) < len(pairs):
            raise ValueError(f"widths is {text!r}; {_EXAMPLE}.")
        choices.append({kind: int(width) for kind, width in pairs})
    return tuple(choices)


def write_widths(choices: Sequence[Widths]) -> str:
    """Write widths as the text that :func:`parse_widths` reads."""
    return ";".join(",".join(f"{kind}={width}" for kind, width in widths.items()) for widths in choices)


def _listed(widths: Widths) -> str:
    return " and ".join(f"{width} {kind}" for kind, width in widths.items())


def completed_widths(structure: Structure, text: str, counts: Mapping[str, tuple[int, ...]]) -> tuple[Widths, ...]:
    """Complete the widths with every kind of a model's dimensions; kinds that are not named keep everything.

    Args:
        structure: structure of the model before pruning.
        text: see :func:`parse_widths`.
        counts: legal numbers of groups, by coarse kind.

    Raises:
        ValueError: the model does not have a kind, or cannot have a width.
    """
    choices = []
    for widths in parse_widths(text):
        unknown = next((kind for kind in widths if kind not in structure.kinds), None)
        if unknown is not None:
            raise ValueError(f"widths names {unknown!r}, but the kinds to prune are {', '.join(structure.kinds)}.")
        full = {kind: widest(structure, kind) for kind in structure.kinds}
        for kind, width in widths.items():
            if not 1 <= width <= full[kind]:
                raise ValueError(f"widths has {width} {kind}. Choose from 1 to {full[kind]}, which the model has now.")
            multiple = math.lcm(*(dimension.multiple for dimension in structure.of_kind(kind)))
            if width % multiple and width != full[kind]:
                raise ValueError(
                    f"widths has {width} {kind}, but in this family the number must be a multiple of {multiple}."
                )
            if kind in counts and width not in counts[kind]:
                accepted = ", ".join(str(count) for count in counts[kind])
                raise ValueError(f"widths has {width} {kind}, but the possible numbers are {accepted}.")
        choices.append({**full, **widths})
        if choices[-1] == full:
            raise ValueError(f"widths is {text!r}, which keeps everything: {_listed(full)}. Choose smaller widths.")
    return tuple(choices)
