"""How long work tells how far it is."""

from __future__ import annotations

from collections.abc import Callable

Told = Callable[[int, int], None]
"""Told how many steps of a piece of work are done, and how many there are."""

ToldOf = Callable[[str, int, int], None]
"""The same where there are several pieces of work; which one comes first."""
