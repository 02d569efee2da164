"""The name that was probably meant: one rule for commands, options, choices and files."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

CUTOFF = 0.66
"""How alike two names have to be, from 0 to 1: a letter or two apart, or an ending that was forgotten."""


def near_names(name: str, known: Iterable[str], most: int = 1) -> list[str]:
    """Known names that are almost the given one, the nearest first; empty where none is.

    Args:
        name: as typed. Case, dashes in front, and underscores for dashes do not count.
        known: names there are.
        most: how many to give back.
    """
    by_key: dict[str, str] = {}
    for candidate in known:
        by_key.setdefault(_key(candidate), candidate)
    return [by_key[key] for key in difflib.get_close_matches(_key(name), by_key, n=most, cutoff=CUTOFF)]


def _key(name: str) -> str:
    return name.lower().replace("_", "-").lstrip("-")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`` Did you mean 'ratio'?``, with a space in front; empty where no known name is near."""
    near = near_names(name, known)
    return f" Did you mean {near[0]!r}?" if near else ""
