"""Suggestions for mistyped names of commands, options, choices and files."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

CUTOFF = 0.66
"""Least similarity of two names, from 0 to 1: they differ by one or two letters, or by a missing ending."""


def near_names(name: str, known: Iterable[str], most: int = 1) -> list[str]:
    """Return the known names that are similar to a name, the nearest first.

    Args:
        name: name as typed. Case, leading dashes, and underscores for dashes are ignored.
        known: known names.
        most: maximum number of names to return.
    """
    by_key: dict[str, str] = {}
    for candidate in known:
        by_key.setdefault(_key(candidate), candidate)
    return [by_key[key] for key in difflib.get_close_matches(_key(name), by_key, n=most, cutoff=CUTOFF)]


def _key(name: str) -> str:
    return name.lower().replace("_", "-").lstrip("-")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return `` Did you mean 'ratio'?``, with a leading space; empty if no known name is similar."""
    near = near_names(name, known)
    return f" Did you mean {near[0]!r}?" if near else ""
